package cloud

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestGoogleServiceAccountSignsAClaim(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "ci@p.iam", "private_key_id": "7", "token_uri": "https://oauth2.googleapis.com/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	f, c := newClouds(t)
	f.env["GOOGLE_APPLICATION_CREDENTIALS"] = put(t, t.TempDir(), "key.json", string(raw))
	f.hosts["oauth2.googleapis.com/token"] = only(`{"access_token":"tok"}`, func(r *http.Request) bool {
		text, sig, _ := cutLast(r.FormValue("assertion"))
		sum := sha256.Sum256([]byte(text))
		b, err := base64.RawURLEncoding.DecodeString(sig)
		_, claims, _ := strings.Cut(text, ".")
		doc, err2 := base64.RawURLEncoding.DecodeString(claims)
		var claim struct{ Iss, Aud string }
		return errors.Join(err, err2, rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], b), json.Unmarshal(doc, &claim)) == nil &&
			claim.Iss == "ci@p.iam" && claim.Aud == "https://oauth2.googleapis.com/token"
	})
	f.hosts["storage.googleapis.com/storage/v1/b/bucket/o/a%2Fb.tgz"] = only("data", func(r *http.Request) bool {
		return r.Header.Get("Authorization") == "Bearer tok" && r.URL.Query().Get("alt") == "media"
	})
	wantText(t, "data")(c.GCS(t.Context(), Object{"bucket", "a/b.tgz"}))
	if got, err := c.GCR(t.Context(), "europe-docker.pkg.dev"); err != nil || got != (Login{"oauth2accesstoken", "tok"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func TestGoogleTokensOfOtherKinds(t *testing.T) {
	f, c := newClouds(t)
	put(t, f.env["HOME"], ".config/gcloud/application_default_credentials.json", `{"type":"authorized_user","client_id":"i","client_secret":"s","refresh_token":"r"}`)
	f.hosts["oauth2.googleapis.com/token"] = only(`{"access_token":"user"}`, func(r *http.Request) bool { return r.FormValue("refresh_token") == "r" })
	if got, err := c.googleToken(t.Context()); err != nil || got != "user" {
		t.Errorf("%q, %v", got, err)
	}
	dir := t.TempDir()
	jwt := put(t, dir, "jwt", `{"id_token":"subject"}`)
	f.env["GOOGLE_APPLICATION_CREDENTIALS"] = put(t, dir, "wif.json", `{"type":"external_account","audience":"aud","token_url":"https://sts.googleapis.com/v1/token",
		"service_account_impersonation_url":"https://iamcredentials.googleapis.com/v1/sa:generateAccessToken",
		"credential_source":{"file":"`+jwt+`","format":{"type":"json","subject_token_field_name":"id_token"}}}`)
	f.hosts["sts.googleapis.com"] = only(`{"access_token":"federated"}`, func(r *http.Request) bool {
		return r.FormValue("subject_token") == "subject" && r.FormValue("audience") == "aud"
	})
	f.hosts["iamcredentials.googleapis.com"] = only(`{"accessToken":"impersonated"}`, func(r *http.Request) bool {
		return r.Header.Get("Authorization") == "Bearer federated"
	})
	if got, err := c.googleToken(t.Context()); err != nil || got != "impersonated" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{``, `{}`, `{"type":"service_account","private_key":"x"}`, `{"type":"external_account"}`,
		`{"type":"external_account","token_url":"http://plain.test/","credential_source":{"file":"` + jwt + `"}}`} {
		f.env["GOOGLE_APPLICATION_CREDENTIALS"] = put(t, dir, "bad.json", bad)
		f.asked = nil
		if _, err := c.googleToken(t.Context()); err == nil || errors.Is(err, errNobody) {
			t.Errorf("%s: %v", bad, err)
		}
		f.wantAsked()
	}
}

func TestGoogleMachineIsAskedOnlyForGoogle(t *testing.T) {
	f, c := newClouds(t)
	f.hosts["metadata.google.internal"] = only(`{"access_token":"vm"}`, func(r *http.Request) bool { return r.Header.Get("Metadata-Flavor") == "Google" })
	for _, host := range []string{"docker.io", "gcr.io.evil.test", "evilgcr.io"} {
		if got, err := c.GCR(t.Context(), host); err != nil || got != (Login{}) {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	f.wantAsked()
	if got, err := c.GCR(t.Context(), "eu.gcr.io"); err != nil || got.Password != "vm" {
		t.Errorf("%+v, %v", got, err)
	}
	delete(f.hosts, "metadata.google.internal")
	if got, err := c.GCR(t.Context(), "gcr.io"); err != nil || got != (Login{}) {
		t.Errorf("nobody there: %+v, %v", got, err)
	}
	f.hosts["storage.googleapis.com"] = only("", func(*http.Request) bool { return false })
	if _, err := c.GCS(t.Context(), Object{"b", "k"}); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "GOOGLE_APPLICATION_CREDENTIALS") {
		t.Error(err)
	}
	f.env["STORAGE_EMULATOR_HOST"] = "fake.test:4443"
	f.hosts["fake.test:4443/storage/v1/b/b/o/k"] = says("emulated")
	wantText(t, "emulated")(c.GCS(t.Context(), Object{"b", "k"}))
}
