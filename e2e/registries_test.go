package e2e

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A front is a server before the test registry that counts requests and may answer itself.
type front struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int // by "METHOD path"
}

// newFront forwards what guard does not answer.
func newFront(t *testing.T, start func(http.Handler) *httptest.Server, guard func(w http.ResponseWriter, r *http.Request) (answered bool)) *front {
	t.Helper()
	to, err := url.Parse("http://" + needRegistry(t))
	if err != nil {
		t.Fatal(err)
	}
	// The registry names itself in the URLs of uploads: by Host, so that they lead back here.
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host; r.SetXForwarded() }}
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {}
	f := &front{seen: map[string]int{}}
	f.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.seen[r.Method+" "+r.URL.Path]++
		f.mu.Unlock()
		if guard == nil || !guard(w, r) {
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *front) host() string { _, host, _ := strings.Cut(f.URL, "://"); return host }

// count is how often such requests came.
func (f *front) count(method, part string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, v := range f.seen {
		if strings.HasPrefix(k, method+" ") && strings.Contains(k, part) {
			n += v
		}
	}
	return n
}

// through is a reference of the test registry by way of f.
func (f *front) through(ref string) string { return strings.Replace(ref, env.registry, f.host(), 1) }

func basicAuth(w http.ResponseWriter, r *http.Request) bool {
	if u, p, ok := r.BasicAuth(); ok && u == "user" && p == "pass" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
	return true
}

func TestCredentialsComeFromLoginEnvironmentAndHelpers(t *testing.T) {
	t.Parallel()
	f := newFront(t, httptest.NewServer, basicAuth)
	ref := f.through(smallImage(t))
	anonymous := newDen(t)
	anonymous.fails([]string{"pull", "-q", ref}, "unauthorized")

	d := newDen(t)
	d.fails([]string{"login", "-u", "user", "-p", "wrong", f.host()}, f.host())
	r := d.try(strings.NewReader("pass\n"), "login", "-u", "user", "--password-stdin", f.host())
	if r.code != 0 || !strings.Contains(r.out, "Login Succeeded") {
		t.Fatalf("login: %+v", r)
	}
	d.run("pull", "-q", ref)
	d.run("build", "--push", "-t", f.host()+"/t/auth:1", d.dir(files{"Dockerfile": "FROM " + ref + "\nRUN true\n"}))
	b, err := os.ReadFile(filepath.Join(d.home, ".docker/config.json"))
	if fi, serr := os.Stat(filepath.Join(d.home, ".docker/config.json")); err != nil || serr != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Errorf("config.json: %v, %v, %s", err, serr, b)
	}
	d.run("logout", f.host())
	d.fails([]string{"push", f.host() + "/t/auth:1"}, "unauthorized")

	auth := base64.StdEncoding.EncodeToString([]byte("user:pass"))
	newDen(t).with(fmt.Sprintf(`DOCKER_AUTH_CONFIG={"auths":{%q:{"auth":%q}}}`, f.host(), auth)).run("pull", "-q", ref)

	helped := newDen(t)
	bin := helped.dir(files{"docker-credential-fake": "#!/bin/sh\nread host\n[ \"$1\" = get ] && echo '{\"ServerURL\":\"'$host'\",\"Username\":\"user\",\"Secret\":\"pass\"}'\n"})
	if err := os.Chmod(filepath.Join(bin, "docker-credential-fake"), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := helped.dir(files{"config.json": fmt.Sprintf(`{"credHelpers":{%q:"fake"}}`, f.host())})
	helped.with("DOCKER_CONFIG="+cfg, "PATH="+bin+":"+os.Getenv("PATH")).run("pull", "-q", ref)
	all := newDen(t)
	store := all.dir(files{"config.json": `{"credsStore":"fake"}`})
	all.with("DOCKER_CONFIG="+store, "PATH="+bin+":"+os.Getenv("PATH")).run("build", "-q", all.dir(files{"Dockerfile": "FROM " + ref + "\nRUN true\n"}))
	all.with("DOCKER_CONFIG="+store).fails([]string{"pull", "-q", ref}, "docker-credential-fake")
}

func TestTokensAreFetchedWhereTheRegistrySays(t *testing.T) {
	t.Parallel()
	var f *front
	f = newFront(t, httptest.NewServer, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if basicAuth(w, r) {
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"token": "t0ken " + r.URL.Query().Get("scope"), "expires_in": 300})
			return true
		}
		if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer t0ken repository:") {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+f.URL+`/token",service="test",scope="repository:e2e/small:pull"`)
		http.Error(w, "{}", http.StatusUnauthorized)
		return true
	})
	auth := base64.StdEncoding.EncodeToString([]byte("user:pass"))
	newDen(t).with(fmt.Sprintf(`DOCKER_AUTH_CONFIG={"auths":{%q:{"auth":%q}}}`, f.host(), auth)).run("pull", "-q", f.through(smallImage(t)))
	if f.count("GET", "/token") == 0 {
		t.Error("nobody asked for a token")
	}
	newDen(t).fails([]string{"pull", "-q", f.through(smallImage(t))}, "unauthorized")
}

func TestMirrorsServeShortNames(t *testing.T) {
	t.Parallel()
	f := newFront(t, httptest.NewServer, nil)
	small, err := smallTar()
	if err != nil {
		t.Skip(err)
	}
	if _, err := pushBase("library/mirrored", containerConfig{Env: []string{basePath}}, small); err != nil {
		t.Fatal(err)
	}
	ctx := files{"Dockerfile": "FROM mirrored\nRUN echo x > /x\n"}
	d := newDen(t)
	d.with("DEN_MIRROR="+f.URL).run("build", "-t", "x", d.dir(ctx))
	if f.count("GET", "/blobs/") == 0 {
		t.Error("the mirror gave no blobs")
	}
	d = newDen(t)
	d.run("build", "--registry-mirror", f.URL, d.dir(ctx))
	d = newDen(t)
	conf := d.dir(files{"daemon.json": fmt.Sprintf(`{"registry-mirrors":[%q]}`, f.URL)})
	d.run("--config-file", filepath.Join(conf, "daemon.json"), "build", d.dir(ctx))
	if out := d.run("images", "--format", "{{.Repository}}"); strings.Contains(out, "127.0.0.1") {
		t.Errorf("the mirror's address is a name: %s", out)
	}
}

// A connectProxy leads every CONNECT to one host, whatever host it names:
// loopback itself is trusted without a certificate, as by dockerd.
func connectProxy(t *testing.T, to string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		far, err := net.Dial("tcp", to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer far.Close()
		near, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer near.Close()
		if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		go func() { _, _ = io.Copy(far, near); far.Close() }()
		_, _ = io.Copy(near, far)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestPrivateAuthoritiesAreTrustedWhenGiven(t *testing.T) {
	t.Parallel()
	f := newFront(t, httptest.NewTLSServer, nil)
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
	ref := strings.Replace(smallImage(t), env.registry, "example.com", 1) // the name in the test server's certificate
	proxy := "HTTPS_PROXY=" + connectProxy(t, f.host())
	d := newDen(t).with(proxy)
	d.fails([]string{"pull", "-q", ref}, "certificate", "example.com")
	certs := d.dir(files{"example.com/ca.crt": cert})
	d.run("--registry-certs", certs, "pull", "-q", ref)
	newDen(t).with(proxy, "SSL_CERT_FILE="+filepath.Join(certs, "example.com/ca.crt")).run("pull", "-q", ref)
	newDen(t).with(proxy).run("--insecure-registry", "example.com", "pull", "-q", ref)
}

func TestBusyRegistriesAreAskedAgainLater(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	refuse, last := map[string]int{}, time.Time{}
	f := newFront(t, httptest.NewServer, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		key := r.Method + r.URL.Path
		refuse[key]++
		switch {
		case !strings.Contains(r.URL.Path, "/blobs/sha256") || r.Method != http.MethodGet:
			return false
		case refuse[key] == 1:
			last = time.Now()
			w.Header().Set("Retry-After", "1")
			http.Error(w, "slower", http.StatusTooManyRequests)
			return true
		case refuse[key] == 2:
			if time.Since(last) < 900*time.Millisecond {
				t.Errorf("asked again after %v", time.Since(last))
			}
			http.Error(w, "oops", http.StatusBadGateway)
			return true
		}
		return false
	})
	newDen(t).run("pull", "-q", f.through(smallImage(t)))
}

func TestPushesSendOnlyWhatTheRegistryLacks(t *testing.T) {
	t.Parallel()
	f := newFront(t, httptest.NewServer, nil)
	d := newDen(t)
	base := f.through(smallImage(t))
	ctx := d.dir(files{"Dockerfile": "FROM " + base + "\nRUN echo x > /x\n"})
	one, two := f.through(newName(t)), f.through(newName(t))
	d.run("build", "--push", "-t", one, ctx)
	uploads := func() int { return f.count("PUT", "/blobs/uploads/") }
	if n := uploads(); n > 2 {
		t.Errorf("the first push sent %d blobs, want the new layer and the configuration; the base is there to be mounted", n)
	}
	before := uploads()
	d.run("tag", one, two)
	d.run("push", "-q", two)
	if n := uploads() - before; n > 1 {
		t.Errorf("the push to another repository sent %d blobs, want the configuration", n)
	}
	before = uploads()
	d.run("push", "-q", one)
	if n := uploads() - before; n > 0 {
		t.Errorf("the push of what is there sent %d blobs", n)
	}
	if a, b := fetchImage(t, strings.Replace(one, f.host(), env.registry, 1)), fetchImage(t, strings.Replace(two, f.host(), env.registry, 1)); a.digest != b.digest {
		t.Errorf("the images are %s and %s", a.digest, b.digest)
	}
}

func TestCutUploadsAreContinued(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	cuts := 2
	f := newFront(t, httptest.NewServer, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch && (r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/uploads/")) || r.ContentLength == 0 {
			return false
		}
		mu.Lock()
		cut := cuts > 0
		cuts--
		mu.Unlock()
		if cut {
			_, _ = r.Body.Read(make([]byte, 64<<10))
			panic(http.ErrAbortHandler)
		}
		return false
	})
	d := newDen(t)
	ref := f.through(newName(t))
	ctx := d.dir(files{"Dockerfile": "FROM @small\nRUN head -c 6000000 /dev/urandom > /noise\n"})
	d.run("build", "--push", "-t", ref, ctx)
	img := fetchImage(t, strings.Replace(ref, f.host(), env.registry, 1))
	if img.tree["noise"].Size != 6000000 {
		t.Errorf("the file is %+v", img.tree["noise"])
	}
}

func TestPlatformOfAnIndexIsChosen(t *testing.T) {
	t.Parallel()
	d := newDen(t)
	name := newName(t)
	ctx := d.dir(files{"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY <<x /arch\n${TARGETARCH}\nx\n"})
	d.run("build", "--platform=linux/amd64,linux/arm64", "--push", "-t", name, ctx)
	other := newDen(t)
	other.run("pull", "-q", "--platform=linux/arm64", name)
	if out := other.run("inspect", "-f", "{{.Architecture}}", name); out != "arm64\n" {
		t.Errorf("the image is for %s", out)
	}
	other.tree("--platform=linux/arm64", other.dir(files{"Dockerfile": "FROM " + name + "\n"})).holds(t, "arch", "arm64\n")
	other.fails([]string{"pull", "-q", "--platform=linux/s390x", name}, "s390x")
}
