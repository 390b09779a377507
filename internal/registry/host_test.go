package registry_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"den/internal/oci"
	"den/internal/registry"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func TestBusyRegistryIsAskedAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		after  string
		want   time.Duration
	}{
		"429 with a pause":         {429, "7", 7 * time.Second},
		"429 without":              {429, "", time.Second},
		"503":                      {503, "", time.Second},
		"500":                      {500, "", time.Second},
		"408":                      {408, "", time.Second},
		"a proxy's own status":     {522, "", time.Second},
		"a connection that breaks": {0, "", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			var n counter
			host := serve(t, route(good(), func(w http.ResponseWriter, r *http.Request) bool {
				if !isManifest(r) || n.next() > 2 {
					return false
				}
				if tc.status == 0 {
					breakOff()
				}
				if tc.after != "" {
					w.Header().Set("Retry-After", tc.after)
				}
				w.WriteHeader(tc.status)
				return true
			}))
			b := newBench(t, nil)
			if _, err := b.PushManifest(t.Context(), host+"/app:v1", oci.MediaTypeManifest, image(nil, nil)); err != nil {
				t.Fatal(err)
			}
			if want := []time.Duration{tc.want, tc.want}; !slices.Equal(b.slept, want) {
				t.Errorf("waited %v, want %v", b.slept, want)
			}
		})
	}
}

func TestRateLimitIsPassedOnWithAdvice(t *testing.T) {
	for name, after := range map[string]string{"a long pause": "3600", "for ever": ""} {
		t.Run(name, func(t *testing.T) {
			host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !isManifest(r) {
					return
				}
				if after != "" {
					w.Header().Set("Retry-After", after)
				}
				w.WriteHeader(http.StatusTooManyRequests)
				fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`)
			}))
			b := newBench(t, nil)
			_, _, err := b.Manifest(t.Context(), host+"/app")
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "pull rate limit") || !strings.Contains(err.Error(), "den login "+host) {
				t.Errorf("got %v", err)
			}
			if after != "" && len(b.slept) > 0 {
				t.Errorf("waited %v", b.slept)
			}
		})
	}
}

func TestRedirectsAreBounded(t *testing.T) {
	var n counter
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			n.next()
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	b := newBench(t, nil)
	_, err := b.pull(t, host+"/app", descriptor([]byte("x")))
	if err == nil || !strings.Contains(err.Error(), "more than 10 redirects") || n.count() != 11 || len(b.slept) > 0 {
		t.Errorf("%d requests, %d waits, %v", n.count(), len(b.slept), err)
	}
}

func TestRedirectsToSecretsAndOtherSchemesAreRefused(t *testing.T) {
	for _, to := range []string{"http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/", "file:///etc/passwd", "http://[::ffff:169.254.169.254]/"} {
		host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isBlob(r) {
				w.Header().Set("Location", to)
				w.WriteHeader(http.StatusTemporaryRedirect)
			}
		}))
		b := newBench(t, nil)
		_, err := b.pull(t, host+"/app", descriptor([]byte("x")))
		if err == nil || !strings.Contains(err.Error(), "refused") || len(b.slept) > 0 {
			t.Errorf("%s: %v", to, err)
		}
	}
}

func TestEndlessErrorIsCutShort(t *testing.T) {
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		w.WriteHeader(http.StatusBadRequest)
		for {
			if _, err := w.Write(bytes.Repeat([]byte("no\x1b[31m\n"), 1000)); err != nil {
				return
			}
		}
	}))
	b := newBench(t, nil)
	_, err := b.pull(t, host+"/app", descriptor([]byte("x")))
	if err == nil || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("got %.2000q", err)
	}
}

func TestMirrorServesAndTheOriginHelpsOut(t *testing.T) {
	layer := randomBytes(t, 1000)
	missing := randomBytes(t, 1000)
	d := descriptor(layer)
	var hits []string
	mirror := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		hits = append(hits, r.Method+" "+r.URL.Path)
		if strings.HasSuffix(r.URL.Path, string(d.Digest)) {
			_, _ = w.Write(layer)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	origin := serve(t, good())
	b := newBench(t, func(o *registry.Options) { o.Mirrors = []string{origin + "=http://" + mirror + "/hub"} })
	b.push(t, origin+"/app", layer)
	b.push(t, origin+"/app", missing)
	if len(hits) > 0 {
		t.Errorf("writes went to the mirror: %q", hits)
	}
	b.wantPull(t, origin+"/app", layer)
	b.wantPull(t, origin+"/app", missing)
	want := []string{"GET /v2/hub/app/blobs/" + string(d.Digest), "GET /v2/hub/app/blobs/" + string(descriptor(missing).Digest)}
	if !slices.Equal(hits, want) {
		t.Errorf("the mirror was asked %q, want %q", hits, want)
	}
	if len(b.notices) > 0 {
		t.Errorf("notices: %q", b.notices)
	}
}

func TestMirrorThatFailsIsLeftOutForAWhile(t *testing.T) {
	var n counter
	mirror := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			n.next()
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	origin := serve(t, good())
	now := time.Now()
	b := newBench(t, func(o *registry.Options) { o.Now = func() time.Time { return now } })
	b.env["DEN_MIRROR"] = origin + "=" + mirror
	data := randomBytes(t, 1000)
	b.push(t, origin+"/app", data)
	b.wantPull(t, origin+"/app", data)
	b.wantPull(t, origin+"/app", data)
	if n.count() != 2 {
		t.Errorf("asked %d times, want two tries", n.count())
	}
	if len(b.notices) != 1 || !strings.Contains(b.notices[0], mirror) {
		t.Errorf("notices: %q", b.notices)
	}
	now = now.Add(2 * time.Minute)
	b.wantPull(t, origin+"/app", data)
	if n.count() != 4 {
		t.Errorf("asked %d times in all, want 4", n.count())
	}
}

func TestDownloadFromAMirrorThatDiesIsFinishedByTheOrigin(t *testing.T) {
	data := randomBytes(t, 500_000)
	mirror := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			return
		}
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:200_000])
		w.(http.Flusher).Flush()
		breakOff()
	}))
	var ranges []string
	origin := serve(t, route(good(), func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			ranges = append(ranges, r.Header.Get("Range"))
		}
		return false
	}))
	b := newBench(t, func(o *registry.Options) { o.Mirrors = []string{origin + "=" + mirror} })
	b.push(t, origin+"/app", data)
	b.wantPull(t, origin+"/app", data)
	if !slices.Equal(ranges, []string{"bytes=200000-499999"}) {
		t.Errorf("the origin was asked for %q", ranges)
	}
}

func TestDaemonJSONNamesMirrorsAndInsecureRegistries(t *testing.T) {
	manifest := image(nil, nil)
	mirror := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/library/debian/manifests/") {
			w.Header().Set("Content-Type", oci.MediaTypeManifest)
			_, _ = w.Write(manifest)
		}
	}))
	b := newBench(t, nil)
	write(t, b.home+"/daemon.json", `{"registry-mirrors":["http://`+mirror+`/"],"debug":true}`)
	d, err := b.Resolve(t.Context(), "debian")
	if err != nil || d.Digest != digest.FromBytes(manifest) {
		t.Errorf("%v, %v", d, err)
	}
	b = newBench(t, nil)
	write(t, b.home+"/daemon.json", `{"registry-mirrors":`)
	_, _ = b.Resolve(t.Context(), serve(t, good())+"/app")
	if len(b.notices) != 1 || !strings.Contains(b.notices[0], "daemon.json") {
		t.Errorf("notices: %q", b.notices)
	}
}

// tlsRegistry serves a registry by TLS, for the name example.com, and returns
// its address and its certificate in PEM form.
func tlsRegistry(t *testing.T, h http.Handler) (addr, cert string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestUnknownAuthorityIsRefusedUntilItsCertificateIsThere(t *testing.T) {
	addr, cert := tlsRegistry(t, good())
	proxy := connectProxy(t, func(string) string { return addr })
	dir := t.TempDir()
	b := newBench(t, func(o *registry.Options) { o.Proxy = proxy })
	err := b.Ping(t.Context(), "example.com")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "/etc/docker/certs.d/example.com/ca.crt") || len(b.slept) > 0 {
		t.Errorf("got %v after %d waits", err, len(b.slept))
	}
	write(t, dir+"/by-host/example.com/ca.crt", cert)
	write(t, dir+"/flat/any.crt", cert)
	write(t, dir+"/one.pem", cert)
	write(t, dir+"/other/other.example.com/ca.crt", cert)
	for certs, want := range map[string]bool{
		"by-host": true, "flat": true, "example.com=" + dir + "/one.pem": true,
		"other": false, "other.example.com=" + dir + "/one.pem": false,
	} {
		if !strings.Contains(certs, "=") {
			certs = dir + "/" + certs
		}
		b := newBench(t, func(o *registry.Options) { o.Proxy, o.CACertDirs = proxy, []string{certs} })
		if err := b.Ping(t.Context(), "example.com"); (err == nil) != want {
			t.Errorf("with %s: %v", certs, err)
		}
	}
	for _, insecure := range []string{"example.com", "https://example.com/"} {
		b := newBench(t, func(o *registry.Options) { o.Proxy, o.Insecure = proxy, []string{insecure} })
		if err := b.Ping(t.Context(), "example.com"); err != nil {
			t.Errorf("with %s insecure: %v", insecure, err)
		}
	}
	b = newBench(t, func(o *registry.Options) { o.Proxy, o.CACertDirs = proxy, []string{dir + "/broken"} })
	write(t, dir+"/broken/ca.crt", "nonsense")
	if err := b.Ping(t.Context(), "example.com"); err == nil || !strings.Contains(err.Error(), dir+"/broken/ca.crt") {
		t.Errorf("broken certificate: %v", err)
	}
}

func TestImagesTravelByTLS(t *testing.T) {
	addr, cert := tlsRegistry(t, good())
	b := newBench(t, func(o *registry.Options) {
		o.Proxy = connectProxy(t, func(string) string { return addr })
		o.CACertDirs = []string{t.TempDir()}
		write(t, o.CACertDirs[0]+"/ca.crt", cert)
	})
	data := randomBytes(t, 10<<20) // above what asks "100-continue"
	b.push(t, "example.com/app", data)
	b.wantPull(t, "example.com/app", data)
}

func TestPlainRegistryIsToldHowToBeAllowed(t *testing.T) {
	addr := serve(t, good())
	proxy := connectProxy(t, func(string) string { return addr })
	b := newBench(t, func(o *registry.Options) { o.Proxy = proxy })
	err := b.Ping(t.Context(), "example.com:5000")
	if err == nil || !strings.Contains(err.Error(), "--insecure-registry example.com:5000") || len(b.slept) > 0 {
		t.Errorf("got %v after %d waits", err, len(b.slept))
	}
}

func TestInsecureNetworksCoverTheirAddresses(t *testing.T) {
	origin := serve(t, good())
	// The proxy passes plain http on: an address outside of loopback.
	proxy := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		r.URL.Host, r.RequestURI = origin, ""
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
	}))
	for insecure, want := range map[string]bool{"192.0.2.0/24": true, "192.0.2.7:5000": true, "192.0.3.0/24": false, "192.0.2.7:5001": false} {
		b := newBench(t, func(o *registry.Options) { o.Insecure = []string{insecure} })
		b.env["HTTP_PROXY"], b.env["HTTPS_PROXY"] = "http://"+proxy, "http://"+proxy
		if err := b.Ping(t.Context(), "192.0.2.7:5000"); (err == nil) != want {
			t.Errorf("with %s: %v", insecure, err)
		}
	}
}

func TestRegistryIsNeverTalkedDownToPlainHTTP(t *testing.T) {
	plain := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	for name, first := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"by a redirect": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://"+plain+"/x", http.StatusTemporaryRedirect)
			return true
		},
		"by its token service": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+plain+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr, cert := tlsRegistry(t, route(good(), first))
			b := newBench(t, func(o *registry.Options) {
				o.Proxy = connectProxy(t, func(string) string { return addr })
				o.CACertDirs = []string{t.TempDir()}
				write(t, o.CACertDirs[0]+"/ca.crt", cert)
			})
			_, err := b.pull(t, "example.com/app", descriptor([]byte("hello")))
			if err == nil || !strings.Contains(err.Error(), "plain http; refused") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for _, o := range []registry.Options{
		{Mirrors: []string{"ftp://mirror"}}, {Mirrors: []string{""}}, {Mirrors: []string{"a b"}}, {Mirrors: []string{"x=http://"}},
		{Mirrors: []string{"mirror/../up"}}, {Insecure: []string{"a b"}}, {Insecure: []string{"host/path"}},
	} {
		if _, err := registry.New(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v %+v: %v", o.Mirrors, o.Insecure, err)
		}
	}
}

func TestNobodyListeningIsToldSoon(t *testing.T) {
	b := newBench(t, nil)
	err := b.Ping(t.Context(), "127.0.0.1:1")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "nothing listens there") || len(b.slept) != 2 {
		t.Errorf("got %v after %d waits", err, len(b.slept))
	}
}

func TestClientCertificateIsShown(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(good())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	host := s.Listener.Addr().String()

	dir := t.TempDir() + "/"
	options := func(o *registry.Options) { o.CACertDirs = []string{dir} }
	if err := newBench(t, options).Ping(t.Context(), host); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
	write(t, dir+host+"/client.cert", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	if err := newBench(t, options).Ping(t.Context(), host); err == nil || !strings.Contains(err.Error(), "client.key is missing") {
		t.Errorf("without its key: %v", err)
	}
	write(t, dir+host+"/client.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
	if err := newBench(t, options).Ping(t.Context(), host); err != nil {
		t.Error(err)
	}
	named := func(o *registry.Options) {
		o.ClientCerts = []string{"other.test=/none,/none", host + "=" + dir + host + "/client.cert," + dir + host + "/client.key"}
	}
	if err := newBench(t, named).Ping(t.Context(), host); err != nil {
		t.Errorf("named by an option: %v", err)
	}
}
