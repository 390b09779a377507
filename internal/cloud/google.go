package cloud

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	googleScope    = "https://www.googleapis.com/auth/cloud-platform"
	googleTokenURL = "https://oauth2.googleapis.com/token"
	googleMetadata = "metadata.google.internal"
)

// googleFile is a file of Application Default Credentials
// (cloud.google.com/docs/authentication/application-default-credentials).
type googleFile struct {
	Type string `json:"type"`
	// service_account
	ClientEmail  string `json:"client_email"`
	PrivateKeyID string `json:"private_key_id"`
	PrivateKey   string `json:"private_key"`
	TokenURI     string `json:"token_uri"`
	// authorized_user
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	RefreshToken string `json:"refresh_token"`
	// external_account: workload identity federation
	Audience         string `json:"audience"`
	SubjectTokenType string `json:"subject_token_type"`
	TokenURL         string `json:"token_url"`
	ImpersonationURL string `json:"service_account_impersonation_url"`
	Source           struct {
		File    string            `json:"file"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
		Format  struct {
			Type  string `json:"type"`
			Field string `json:"subject_token_field_name"`
		} `json:"format"`
	} `json:"credential_source"`
}

// googleToken is an access token: of $GOOGLE_APPLICATION_CREDENTIALS, of gcloud's
// file, or of the machine.
func (c *Client) googleToken(ctx context.Context) (string, error) {
	name := c.o.Env("GOOGLE_APPLICATION_CREDENTIALS")
	named := name != ""
	if !named {
		if dir := c.o.Env("CLOUDSDK_CONFIG"); dir != "" {
			name = dir + "/application_default_credentials.json"
		} else {
			name = c.home(".config", "gcloud", "application_default_credentials.json")
		}
	}
	data, err := file(name)
	if !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return c.googleMachine(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("credentials of Google: %w", err)
	}
	token, err := c.googleFromFile(ctx, data)
	if err != nil {
		return "", fmt.Errorf("credentials of Google in %s: %w", name, err)
	}
	return token, nil
}

func (c *Client) googleFromFile(ctx context.Context, data []byte) (string, error) {
	var f googleFile
	if json.Unmarshal(data, &f) != nil {
		return "", errors.New("it is not the JSON of a key")
	}
	switch f.Type {
	case "service_account":
		return c.googleServiceAccount(ctx, f)
	case "authorized_user":
		return c.googleForm(ctx, googleTokenURL, url.Values{
			"grant_type": {"refresh_token"}, "client_id": {f.ClientID}, "client_secret": {f.ClientSecret}, "refresh_token": {f.RefreshToken},
		})
	case "external_account":
		return c.googleFederated(ctx, f)
	}
	return "", fmt.Errorf("type %q is not known, want service_account, authorized_user or external_account: %w", printable(f.Type), errdefs.ErrNotImplemented)
}

// googleForm posts to a token service.
func (c *Client) googleForm(ctx context.Context, to string, v url.Values) (string, error) {
	var out struct {
		Token string `json:"access_token"`
	}
	if err := c.form(ctx, to, v, &out); err != nil {
		return "", err
	}
	if out.Token == "" {
		return "", errors.New("the token service answers without a token")
	}
	return out.Token, nil
}

// googleServiceAccount signs a claim with the account's key
// (developers.google.com/identity/protocols/oauth2/service-account).
func (c *Client) googleServiceAccount(ctx context.Context, f googleFile) (string, error) {
	to := f.TokenURI
	if to == "" {
		to = googleTokenURL
	}
	key, err := rsaKey(f.PrivateKey)
	if err != nil {
		return "", err
	}
	now := c.o.Now()
	claim, err := signedClaim(key, f.PrivateKeyID, map[string]any{
		"iss": f.ClientEmail, "scope": googleScope, "aud": to, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		return "", err
	}
	return c.googleForm(ctx, to, url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {claim}})
}

func rsaKey(text string) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("private_key is not in PEM form")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, errors.New("private_key is not an RSA key")
	}
	return key, nil
}

// signedClaim is a JSON web token signed with RS256 (RFC 7515).
func signedClaim(key *rsa.PrivateKey, keyID string, claim map[string]any) (string, error) {
	var parts []string
	for _, v := range []any{map[string]string{"alg": "RS256", "typ": "JWT", "kid": keyID}, claim} {
		raw, err := json.Marshal(v)
		if err != nil {
			return "", err
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(raw))
	}
	text := strings.Join(parts, ".")
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// googleFederated exchanges another issuer's token, such as GitLab's
// (cloud.google.com/iam/docs/workload-identity-federation).
func (c *Client) googleFederated(ctx context.Context, f googleFile) (string, error) {
	subject, err := c.subjectToken(ctx, f)
	if err != nil {
		return "", err
	}
	token, err := c.googleForm(ctx, f.TokenURL, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "audience": {f.Audience}, "scope": {googleScope},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"subject_token":        {subject}, "subject_token_type": {f.SubjectTokenType},
	})
	if err != nil || f.ImpersonationURL == "" {
		return token, err
	}
	if err := wantTLS(f.ImpersonationURL); err != nil {
		return "", err
	}
	req, err := request(ctx, http.MethodPost, f.ImpersonationURL, "application/json", `{"scope":["`+googleScope+`"]}`)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	var out struct {
		Token string `json:"accessToken"`
	}
	if err := c.answer(req, &out); err != nil {
		return "", err
	}
	return out.Token, nil
}

func (c *Client) subjectToken(ctx context.Context, f googleFile) (string, error) {
	var data []byte
	var err error
	switch s := f.Source; {
	case s.File != "":
		data, err = file(s.File)
	case s.URL != "":
		var req *http.Request
		if req, err = request(ctx, http.MethodGet, s.URL, "", ""); err == nil {
			for k, v := range s.Headers {
				req.Header.Set(k, v)
			}
			data, err = c.document(req)
		}
	default:
		err = fmt.Errorf("credential_source: want a file or a url: %w", errdefs.ErrNotImplemented)
	}
	if err != nil || f.Source.Format.Type != "json" {
		return strings.TrimSpace(string(data)), err
	}
	doc := map[string]any{}
	if json.Unmarshal(data, &doc) != nil {
		return "", errors.New("credential_source: it is not JSON")
	}
	token, _ := doc[f.Source.Format.Field].(string)
	if token == "" {
		return "", fmt.Errorf("credential_source: it has no %q", printable(f.Source.Format.Field))
	}
	return token, nil
}

// googleMachine asks the metadata service. That nobody is there is errNobody.
func (c *Client) googleMachine(ctx context.Context) (string, error) {
	host := c.o.Env("GCE_METADATA_HOST")
	if host == "" {
		host = googleMetadata
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	req, err := request(ctx, http.MethodGet, "http://"+host+"/computeMetadata/v1/instance/service-accounts/default/token", "", "")
	if err != nil {
		return "", err
	}
	req.Header.Set("Metadata-Flavor", "Google")
	var out struct {
		Token string `json:"access_token"`
	}
	if err := c.answer(req, &out); err != nil || out.Token == "" {
		return "", fmt.Errorf("credentials of Google: %w", errNobody)
	}
	return out.Token, nil
}

// GCS opens an object in a bucket of Google Cloud Storage. Without credentials the
// object has to be public. $STORAGE_EMULATOR_HOST is another server.
func (c *Client) GCS(ctx context.Context, o Object) (io.ReadCloser, error) {
	r, err := c.gcs(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("gs://%s/%s: %w", printable(o.Bucket), printable(o.Key), err)
	}
	return r, nil
}

func (c *Client) gcs(ctx context.Context, o Object) (io.ReadCloser, error) {
	base, token := "https://storage.googleapis.com", ""
	if e := c.o.Env("STORAGE_EMULATOR_HOST"); e != "" {
		if base = e; !strings.Contains(e, "://") {
			base = "http://" + e
		}
	} else {
		var err error
		if token, err = c.googleToken(ctx); err != nil && !errors.Is(err, errNobody) {
			return nil, err
		}
	}
	to := strings.TrimSuffix(base, "/") + "/storage/v1/b/" + url.PathEscape(o.Bucket) + "/o/" + url.PathEscape(o.Key) + "?alt=media"
	r, err := c.object(ctx, func(ctx context.Context, at place) (*http.Request, error) {
		req, err := request(ctx, http.MethodGet, to, "", "")
		if err != nil {
			return nil, err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		at.ask(req.Header, "Range")
		// Else the server unpacks what was stored as gzip.
		req.Header.Set("Accept-Encoding", "gzip")
		return req, nil
	})
	if token == "" && errdefs.IsPermissionDenied(err) {
		err = fmt.Errorf("%w; no Google credentials were found: set GOOGLE_APPLICATION_CREDENTIALS, or give the pod a service account", err)
	}
	return r, err
}

// GCR gets a token for one of Google's registries (gcr.io, pkg.dev). Another host,
// or no Google credentials, is the zero Login.
func (c *Client) GCR(ctx context.Context, host string) (Login, error) {
	if host != "gcr.io" && !strings.HasSuffix(host, ".gcr.io") && !strings.HasSuffix(host, ".pkg.dev") {
		return Login{}, nil
	}
	token, err := c.googleToken(ctx)
	if errors.Is(err, errNobody) {
		return Login{}, nil
	}
	if err != nil {
		return Login{}, fmt.Errorf("password for %s: %w", host, err)
	}
	return Login{"oauth2accesstoken", token}, nil
}
