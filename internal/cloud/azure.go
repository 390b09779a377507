package cloud

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// azureVersion is that of the blob service's protocol.
const azureVersion = "2021-08-06"

// azureBlobSuffixes are the blob services of Azure's clouds.
var azureBlobSuffixes = [...]string{
	".blob.core.windows.net", ".blob.core.chinacloudapi.cn", ".blob.core.usgovcloudapi.net", ".blob.core.cloudapi.de",
}

// IsAzureBlob reports whether a URL is that of a blob.
func IsAzureBlob(to string) bool {
	u, err := url.Parse(to)
	return err == nil && u.Scheme == "https" && u.User == nil && u.Port() == "" &&
		slices.ContainsFunc(azureBlobSuffixes[:], func(s string) bool { return strings.HasSuffix(u.Host, s) && len(u.Host) > len(s) })
}

// AzureBlob opens a blob by its URL: with $AZURE_STORAGE_ACCESS_KEY, else with the
// signature in the URL, else as who we are. Without any of these it has to be
// public.
func (c *Client) AzureBlob(ctx context.Context, to string) (io.ReadCloser, error) {
	r, err := c.azureBlob(ctx, to)
	if err != nil {
		where, _, _ := strings.Cut(to, "?") // after it is the signature
		return nil, fmt.Errorf("%s: %w", printable(where), err)
	}
	return r, nil
}

func (c *Client) azureBlob(ctx context.Context, to string) (io.ReadCloser, error) {
	if !IsAzureBlob(to) {
		return nil, fmt.Errorf("not the URL of a blob: %w", errdefs.ErrInvalidArgument)
	}
	key, token := c.o.Env("AZURE_STORAGE_ACCESS_KEY"), ""
	found := true
	if u, err := url.Parse(to); key == "" && err == nil && u.Query().Get("sig") == "" {
		if token, err = c.azureToken(ctx, "https://storage.azure.com"); err != nil && !errors.Is(err, errNobody) {
			return nil, err
		}
		found = err == nil
	}
	r, err := c.object(ctx, func(ctx context.Context, at place) (*http.Request, error) {
		req, err := request(ctx, http.MethodGet, to, "", "")
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Ms-Version", azureVersion)
		req.Header.Set("X-Ms-Date", c.o.Now().UTC().Format(http.TimeFormat))
		at.ask(req.Header, "X-Ms-Range")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		if key != "" {
			return req, sharedKey(req, key)
		}
		return req, nil
	})
	if !found && (errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err)) {
		err = fmt.Errorf("%w; no Azure credentials were found: set AZURE_STORAGE_ACCESS_KEY", err)
	}
	return r, err
}

// sharedKey signs a request with an account's key
// (learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key).
func sharedKey(req *http.Request, key string) error {
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(key))
	if err != nil {
		return fmt.Errorf("AZURE_STORAGE_ACCESS_KEY is not base64: %w", errdefs.ErrInvalidArgument)
	}
	account, _, _ := strings.Cut(req.URL.Host, ".")
	var headers []string
	for name, values := range req.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-ms-") {
			headers = append(headers, lower+":"+strings.Join(values, ","))
		}
	}
	slices.Sort(headers)
	resource := "/" + account + req.URL.EscapedPath()
	var query []string
	for name, values := range req.URL.Query() {
		slices.Sort(values)
		query = append(query, strings.ToLower(name)+":"+strings.Join(values, ","))
	}
	slices.Sort(query)
	// Eleven headers, of which a GET has If-Match at most.
	text := req.Method + strings.Repeat("\n", 8) + req.Header.Get("If-Match") + strings.Repeat("\n", 4) + strings.Join(headers, "\n") + "\n" + strings.Join(append([]string{resource}, query...), "\n")
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(text))
	req.Header.Set("Authorization", "SharedKey "+account+":"+base64.StdEncoding.EncodeToString(h.Sum(nil)))
	return nil
}

// azureToken is an access token for one of Azure's services: by a client's secret,
// by the token that Kubernetes mounts (workload identity), or of the machine.
func (c *Client) azureToken(ctx context.Context, resource string) (string, error) {
	tenant, client := c.o.Env("AZURE_TENANT_ID"), c.o.Env("AZURE_CLIENT_ID")
	secret, tokenFile := c.o.Env("AZURE_CLIENT_SECRET"), c.o.Env("AZURE_FEDERATED_TOKEN_FILE")
	if tenant == "" || client == "" || secret == "" && tokenFile == "" {
		return c.azureMachine(ctx, resource, client)
	}
	v := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "scope": {resource + "/.default"}}
	if secret != "" {
		v.Set("client_secret", secret)
	} else {
		token, err := file(tokenFile)
		if err != nil {
			return "", fmt.Errorf("credentials of the Azure workload identity: %w", err)
		}
		v.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		v.Set("client_assertion", strings.TrimSpace(string(token)))
	}
	host := c.o.Env("AZURE_AUTHORITY_HOST")
	if host == "" {
		host = "https://login.microsoftonline.com"
	}
	var out struct {
		Token string `json:"access_token"`
	}
	err := c.form(ctx, strings.TrimSuffix(host, "/")+"/"+url.PathEscape(tenant)+"/oauth2/v2.0/token", v, &out)
	if err != nil {
		return "", fmt.Errorf("credentials of Azure: %w", err)
	}
	return out.Token, nil
}

// azureMachine asks the metadata service for a managed identity's token. That
// nobody is there is errNobody.
func (c *Client) azureMachine(ctx context.Context, resource, client string) (string, error) {
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
	if client != "" {
		q.Set("client_id", client)
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	req, err := request(ctx, http.MethodGet, "http://169.254.169.254/metadata/identity/oauth2/token?"+q.Encode(), "", "")
	if err != nil {
		return "", err
	}
	req.Header.Set("Metadata", "true")
	var out struct {
		Token string `json:"access_token"`
	}
	if err := c.answer(req, &out); err != nil || out.Token == "" {
		return "", fmt.Errorf("credentials of Azure: %w", errNobody)
	}
	return out.Token, nil
}

// azureRegistries are Azure's registries, and the service whose token each takes.
var azureRegistries = map[string]string{
	".azurecr.io": "https://management.azure.com",
	".azurecr.cn": "https://management.chinacloudapi.cn",
	".azurecr.us": "https://management.usgovcloudapi.net",
}

// acrUser stands for whoever the token says (learn.microsoft.com/azure/container-registry).
const acrUser = "00000000-0000-0000-0000-000000000000"

// ACR gets a token for one of Azure's registries. Another host, or no Azure
// credentials, is the zero Login.
func (c *Client) ACR(ctx context.Context, host string) (Login, error) {
	_, suffix, _ := strings.Cut(host, ".")
	resource, ok := azureRegistries["."+suffix]
	if !ok {
		return Login{}, nil
	}
	token, err := c.azureToken(ctx, resource)
	if errors.Is(err, errNobody) {
		return Login{}, nil
	}
	if err != nil {
		return Login{}, fmt.Errorf("password for %s: %w", host, err)
	}
	v := url.Values{"grant_type": {"access_token"}, "service": {host}, "access_token": {token}}
	if tenant := c.o.Env("AZURE_TENANT_ID"); tenant != "" {
		v.Set("tenant", tenant)
	}
	var out struct {
		Token string `json:"refresh_token"`
	}
	if err := c.form(ctx, "https://"+host+"/oauth2/exchange", v, &out); err != nil {
		return Login{}, fmt.Errorf("password for %s: %w", host, err)
	}
	return Login{acrUser, out.Token}, nil
}
