package cloud

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const blobURL = "https://account.blob.core.windows.net/box/a/context.tar.gz"

func TestAzureBlobIsSignedWithTheAccountsKey(t *testing.T) {
	f, c := newClouds(t)
	key := []byte("the account's key")
	f.env["AZURE_STORAGE_ACCESS_KEY"] = base64.StdEncoding.EncodeToString(key)
	// The text as the documentation of Shared Key lays it out.
	h := hmac.New(sha256.New, key)
	h.Write([]byte("GET\n\n\n\n\n\n\n\n\n\n\n\n" +
		"x-ms-date:Fri, 24 May 2013 00:00:00 GMT\nx-ms-version:2021-08-06\n/account/box/a/context.tar.gz"))
	want := "SharedKey account:" + base64.StdEncoding.EncodeToString(h.Sum(nil))
	f.hosts["account.blob.core.windows.net/box/a/context.tar.gz"] = only("data", func(r *http.Request) bool { return r.Header.Get("Authorization") == want })
	wantText(t, "data")(c.AzureBlob(t.Context(), blobURL))
	f.env["AZURE_STORAGE_ACCESS_KEY"] = "not base64!"
	if _, err := c.AzureBlob(t.Context(), blobURL); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestAzureBlobByOtherWays(t *testing.T) {
	f, c := newClouds(t)
	f.hosts["account.blob.core.windows.net"] = only("signed", func(r *http.Request) bool {
		return r.URL.Query().Get("sig") == "s" && r.Header.Get("Authorization") == ""
	})
	wantText(t, "signed")(c.AzureBlob(t.Context(), blobURL+"?sv=1&sig=s"))
	_, err := c.AzureBlob(t.Context(), blobURL)
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "AZURE_STORAGE_ACCESS_KEY") {
		t.Error(err)
	}
	f.hosts["account.blob.core.windows.net"] = only("identity", func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer msi" })
	f.hosts["169.254.169.254/metadata/identity/oauth2/token"] = only(`{"access_token":"msi"}`, func(r *http.Request) bool {
		return r.Header.Get("Metadata") == "true" && r.URL.Query().Get("resource") == "https://storage.azure.com"
	})
	wantText(t, "identity")(c.AzureBlob(t.Context(), blobURL))
	// A signature does not reach an error.
	delete(f.hosts, "account.blob.core.windows.net")
	if _, err := c.AzureBlob(t.Context(), blobURL+"?sig=hidden"); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
}

func TestOnlyAzureIsTakenForAzure(t *testing.T) {
	for to, want := range map[string]bool{
		blobURL: true, "https://a.blob.core.chinacloudapi.cn/b/c": true,
		"http://account.blob.core.windows.net/b/c": false, "https://blob.core.windows.net.evil.test/x": false,
		"https://u:p@account.blob.core.windows.net/b": false, "https://.blob.core.windows.net/b": false, "https://example.com/x.tgz": false, "::": false,
	} {
		if IsAzureBlob(to) != want {
			t.Errorf("%s: %t", to, !want)
		}
	}
}

func TestACRExchangesAToken(t *testing.T) {
	f, c := newClouds(t)
	f.env["AZURE_TENANT_ID"], f.env["AZURE_CLIENT_ID"] = "ten", "cli"
	f.env["AZURE_FEDERATED_TOKEN_FILE"] = put(t, t.TempDir(), "token", "kube\n")
	f.hosts["login.microsoftonline.com/ten/oauth2/v2.0/token"] = only(`{"access_token":"arm"}`, func(r *http.Request) bool {
		return r.FormValue("client_assertion") == "kube" && r.FormValue("scope") == "https://management.azure.com/.default"
	})
	f.hosts["app.azurecr.io/oauth2/exchange"] = only(`{"refresh_token":"refresh"}`, func(r *http.Request) bool {
		return r.FormValue("access_token") == "arm" && r.FormValue("service") == "app.azurecr.io" && r.FormValue("tenant") == "ten"
	})
	if got, err := c.ACR(t.Context(), "app.azurecr.io"); err != nil || got != (Login{acrUser, "refresh"}) {
		t.Errorf("%+v, %v", got, err)
	}
	f.env["AZURE_CLIENT_SECRET"] = "sec"
	f.hosts["login.microsoftonline.com/ten/oauth2/v2.0/token"] = only(`{"access_token":"arm"}`, func(r *http.Request) bool { return r.FormValue("client_secret") == "sec" })
	if got, err := c.ACR(t.Context(), "app.azurecr.io"); err != nil || got.Password != "refresh" {
		t.Errorf("%+v, %v", got, err)
	}
	f.asked = nil
	for _, host := range []string{"docker.io", "app.azurecr.io.evil.test", "evil.test.azurecr.io", "azurecr.io"} {
		if got, err := c.ACR(t.Context(), host); err != nil || got != (Login{}) {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	f.wantAsked()
	f.env = map[string]string{"AZURE_AUTHORITY_HOST": "http://plain.test", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"}
	if _, err := c.ACR(t.Context(), "app.azurecr.io"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestSharedKeyCoversTheVersionThatIsGoneOnWith(t *testing.T) {
	req, err := request(t.Context(), http.MethodGet, blobURL, "", "")
	if err != nil {
		t.Fatal(err)
	}
	place{3, `"1"`}.ask(req.Header, "X-Ms-Range")
	if err := sharedKey(req, base64.StdEncoding.EncodeToString([]byte("k"))); err != nil {
		t.Fatal(err)
	}
	h := hmac.New(sha256.New, []byte("k"))
	// Content-Encoding, -Language, -Length, -MD5, -Type, Date and If-Modified-Since,
	// then If-Match, If-None-Match, If-Unmodified-Since and Range.
	h.Write([]byte("GET\n\n\n\n\n\n\n\n\"1\"\n\n\n\nx-ms-range:bytes=3-\n/account/box/a/context.tar.gz"))
	if want := "SharedKey account:" + base64.StdEncoding.EncodeToString(h.Sum(nil)); req.Header.Get("Authorization") != want {
		t.Errorf("got %s, want %s", req.Header.Get("Authorization"), want)
	}
}
