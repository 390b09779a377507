package registry_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"den/internal/registry"

	"github.com/containerd/errdefs"
)

// guard is a registry behind a token service of its own, which gives tokens to
// USER:PASSWORD and counts.
type guard struct {
	mu     sync.Mutex
	realm  string
	tokens map[string]string // token -> scopes
	asked  []string          // for which scopes, by whom
	life   int
	used   []string // the authorization of each request to the registry
}

// newGuard serves h behind a guard and returns its host.
func newGuard(t *testing.T, h http.Handler) (*guard, string) {
	t.Helper()
	g := &guard{tokens: map[string]string{}, life: 300}
	service := serve(t, http.HandlerFunc(g.serveToken))
	g.realm = "http://" + service + "/token?x=y"
	return g, serve(t, route(h, g.check))
}

func (g *guard) serveToken(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	user, password, _ := r.BasicAuth()
	scopes := strings.Join(r.URL.Query()["scope"], " ")
	if r.Method == http.MethodPost {
		scopes = r.PostFormValue("scope")
		user, password = r.PostFormValue("grant_type"), r.PostFormValue("refresh_token")
	}
	g.asked = append(g.asked, user+" "+scopes)
	if user != "" && password != "right" {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		return
	}
	token := fmt.Sprintf("token%d", len(g.asked))
	if user == "" && strings.Contains(scopes, "secret") {
		scopes = ""
	}
	g.tokens[token] = scopes
	refresh := ""
	if r.URL.Query().Get("offline_token") != "" && user == "offline" {
		refresh = `,"refresh_token":"forever"`
	}
	fmt.Fprintf(w, `{"token":%q,"expires_in":%d%s}`, token, g.life, refresh)
}

func (g *guard) check(w http.ResponseWriter, r *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used = append(g.used, r.Header.Get("Authorization"))
	repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	repo, _, _ = strings.Cut(repo, "/manifests/")
	want := "repository:" + repo + ":pull"
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		want += ",push"
	}
	have, ok := g.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if ok && (repo == "" || strings.Contains(have, want)) {
		return false
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="s",scope=%q`, g.realm, want))
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	return true
}

func (g *guard) askedFor() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

func auth(userPassword string) string {
	return fmt.Sprintf(`{"auth":%q}`, base64.StdEncoding.EncodeToString([]byte(userPassword)))
}

func TestOneTokenServesManyRequests(t *testing.T) {
	g, host := newGuard(t, good())
	b := newBench(t, nil)
	b.env["DOCKER_AUTH_CONFIG"] = `{"auths":{"` + host + `":` + auth("bob:right") + `}}`
	data := randomBytes(t, 1000)
	b.push(t, host+"/app", data)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { b.wantPull(t, host+"/app", data) })
	}
	all.Wait()
	want := []string{"bob repository:app:pull,push", "bob repository:app:pull"}
	if got := g.askedFor(); !slices.Equal(got, want) {
		t.Errorf("tokens asked for: %q, want %q", got, want)
	}
}

func TestTokenIsRenewedBeforeAndAfterItExpires(t *testing.T) {
	g, host := newGuard(t, good())
	now := time.Now()
	b := newBench(t, func(o *registry.Options) { o.Now = func() time.Time { return now } })
	data := randomBytes(t, 1000)
	b.push(t, host+"/app", data)
	b.wantPull(t, host+"/app", data)
	g.mu.Lock()
	g.used = nil
	g.mu.Unlock()

	now = now.Add(4*time.Minute + 40*time.Second) // nearly expired: no refusal is needed
	b.wantPull(t, host+"/app", data)
	if len(g.used) != 1 || len(g.asked) != 3 {
		t.Errorf("%d requests, %d tokens; want 1 and 3", len(g.used), len(g.asked))
	}
	clear(g.tokens) // the service forgot them: the refusal tells
	b.wantPull(t, host+"/app", data)
	if len(g.used) != 3 || len(g.asked) != 4 {
		t.Errorf("%d requests, %d tokens; want 3 and 4", len(g.used), len(g.asked))
	}
}

func TestUploadSurvivesAnExpiredToken(t *testing.T) {
	g, host := newGuard(t, good())
	b := newBench(t, nil)
	data := randomBytes(t, 100_000)
	forget := func(n int64) {
		if n == 0 { // a session has been begun
			g.mu.Lock()
			clear(g.tokens)
			g.mu.Unlock()
		}
	}
	if err := b.PushBlob(t.Context(), host+"/app", descriptor(data), opener(data), forget); err != nil {
		t.Fatal(err)
	}
	b.wantPull(t, host+"/app", data)
}

func TestDeniedSaysHowToLogIn(t *testing.T) {
	_, host := newGuard(t, good())
	b := newBench(t, nil)
	_, err := b.Resolve(t.Context(), host+"/secret:v1")
	if !errdefs.IsUnauthorized(err) {
		t.Errorf("class of %v", err)
	}
	if want := `run "den login ` + host + `"`; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "authentication required") {
		t.Errorf("got %v, want %s in it", err, want)
	}
	b.env["DOCKER_AUTH_CONFIG"] = `{"auths":{"` + host + `":` + auth("bob:wrong") + `}}`
	_, err = b.Resolve(t.Context(), host+"/secret:v1")
	if err == nil || !strings.Contains(err.Error(), "user bob") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("got %v", err)
	}
}

func TestBasicCredentialsAreSentWhenAskedFor(t *testing.T) {
	var headers []string
	host := serve(t, route(good(), func(w http.ResponseWriter, r *http.Request) bool {
		headers = append(headers, r.Header.Get("Authorization"))
		if user, password, _ := r.BasicAuth(); user == "bob" && password == "a:b" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}))
	b := newBench(t, nil)
	write(t, b.home+"/.docker/config.json", `{"auths":{"https://`+host+`/v1/":`+auth("bob:a:b")+`}}`)
	if err := b.Ping(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if err := b.Ping(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	// The scheme's probe, the first without, then all with.
	if len(headers) != 4 || headers[0] != "" || headers[1] != "" || headers[2] == "" || headers[3] == "" {
		t.Errorf("headers: %q", headers)
	}
}

func TestCredentialsAreFoundWhereDockerAndPodmanPutThem(t *testing.T) {
	entry := func(user string) string { return auth(user + ":pw") }
	for name, tc := range map[string]struct {
		env        map[string]string
		files      map[string]string
		host, repo string
		want       string
	}{
		"none":            {host: "r.example.com"},
		"docker's file":   {files: map[string]string{".docker/config.json": `{"auths":{"r.example.com":` + entry("a") + `}}`}, host: "r.example.com", want: "a"},
		"Docker Hub":      {files: map[string]string{".docker/config.json": `{"auths":{"https://index.docker.io/v1/":` + entry("hub") + `}}`}, host: "docker.io", want: "hub"},
		"legacy key":      {files: map[string]string{".docker/config.json": `{"auths":{"https://r.example.com/v2/":` + entry("a") + `}}`}, host: "r.example.com", want: "a"},
		"another port":    {files: map[string]string{".docker/config.json": `{"auths":{"r.example.com:5000":` + entry("a") + `}}`}, host: "r.example.com"},
		"user and secret": {files: map[string]string{".docker/config.json": `{"auths":{"r.example.com":{"username":"u","password":"pw"}}}`}, host: "r.example.com", want: "u"},
		"DOCKER_CONFIG": {env: map[string]string{"DOCKER_CONFIG": "HOME/kaniko"},
			files: map[string]string{"kaniko/config.json": `{"auths":{"r.example.com":` + entry("k") + `}}`}, host: "r.example.com", want: "k"},
		"the variable wins": {env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"r.example.com":` + entry("env") + `}}`},
			files: map[string]string{".docker/config.json": `{"auths":{"r.example.com":` + entry("file") + `}}`}, host: "r.example.com", want: "env"},
		"the variable is merged": {env: map[string]string{"DOCKER_AUTH_CONFIG": `{"auths":{"other":` + entry("env") + `}}`},
			files: map[string]string{".docker/config.json": `{"auths":{"r.example.com":` + entry("file") + `}}`}, host: "r.example.com", want: "file"},
		"REGISTRY_AUTH_FILE": {env: map[string]string{"REGISTRY_AUTH_FILE": "HOME/auth.json"},
			files: map[string]string{"auth.json": `{"auths":{"r.example.com":` + entry("p") + `}}`}, host: "r.example.com", want: "p"},
		"podman's file": {env: map[string]string{"XDG_RUNTIME_DIR": "HOME/run"},
			files: map[string]string{"run/containers/auth.json": `{"auths":{"r.example.com":` + entry("p") + `}}`}, host: "r.example.com", want: "p"},
		"a group's before the host's": {files: map[string]string{".docker/config.json": `{"auths":{"r.example.com":` + entry("host") + `,"r.example.com/team":` + entry("team") + `}}`},
			host: "r.example.com", repo: "team/app", want: "team"},
		"not another group's": {files: map[string]string{".docker/config.json": `{"auths":{"r.example.com/team":` + entry("team") + `}}`},
			host: "r.example.com", repo: "teams/app"},
		"helper": {files: map[string]string{".docker/config.json": `{"credHelpers":{"r.example.com":"fake"}}`}, host: "r.example.com", want: "helped"},
		"store":  {files: map[string]string{".docker/config.json": `{"auths":{"r.example.com":{}},"credsStore":"fake"}`}, host: "r.example.com", want: "helped"},
		"helper's none": {files: map[string]string{".docker/config.json": `{"credsStore":"fake"}`},
			host: "unknown.example.com"},
		"helper not installed": {files: map[string]string{".docker/config.json": `{"credsStore":"desktop"}`}, host: "r.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			installHelper(t)
			for k, v := range tc.env {
				b.env[k] = strings.ReplaceAll(v, "HOME", b.home)
			}
			for file, text := range tc.files {
				write(t, filepath.Join(b.home, file), text)
			}
			got, err := b.Credential(t.Context(), tc.host, tc.repo)
			if err != nil || got.Username != tc.want || tc.want != "" && got.Password != "pw" {
				t.Errorf("got %q, %v; want %q", got.Username, err, tc.want)
			}
		})
	}
}

// installHelper puts docker-credential-fake into the PATH.
func installHelper(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
read -r server
case "$1 $server" in
"get r.example.com") echo '{"ServerURL":"r.example.com","Username":"helped","Secret":"pw"}' ;;
"get token.example.com") echo '{"ServerURL":"x","Username":"<token>","Secret":"identity"}' ;;
get*) echo "credentials not found in native keychain"; exit 1 ;;
*) echo "$1 $server" >> "` + dir + `/log" ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-fake"), []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	t.Setenv("HELPER_LOG", dir+"/log")
}

func TestHelpersIdentityTokenIsExchanged(t *testing.T) {
	g, host := newGuard(t, good())
	installHelper(t)
	b := newBench(t, nil)
	c := b.WithCredentials(func(ctx context.Context, h, repo string) (registry.Credential, error) {
		if h != host || repo != "app" && repo != "" {
			t.Errorf("asked for %s, %s", h, repo)
		}
		return registry.Credential{IdentityToken: "right"}, nil
	})
	if err := c.PushBlob(t.Context(), host+"/app", descriptor(nil), opener(nil), nil); err != nil {
		t.Fatal(err)
	}
	if got := g.askedFor(); !slices.Equal(got, []string{"refresh_token repository:app:pull,push"}) {
		t.Errorf("asked: %q", got)
	}
	write(t, b.home+"/.docker/config.json", `{"credsStore":"fake"}`)
	if cred, err := b.Credential(t.Context(), "token.example.com", ""); err != nil || cred.IdentityToken != "identity" {
		t.Errorf("helper: %v, %v", cred.IdentityToken, err)
	}
}

func TestDamagedConfigurationIsToldWithoutItsSecrets(t *testing.T) {
	b := newBench(t, nil)
	for _, text := range []string{`{"auths":{"r.example.com":{"auth":"c2VjcmV0"}}}`, `{"auths":{"r.example.com":{"auth":"!secret!"}}}`, `{"auths":["secret"]}`} {
		write(t, b.home+"/.docker/config.json", text)
		_, err := b.Credential(t.Context(), "r.example.com", "")
		if err == nil || !strings.Contains(err.Error(), "config.json") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	var leaked []string
	bucket := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked = append(leaked, r.Header.Get("Authorization"))
		fmt.Fprint(w, "hello")
	}))
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", "Basic realm=r")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if isBlob(r) {
			http.Redirect(w, r, "http://"+bucket+"/data", http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("Location", "http://"+bucket+"/upload")
		w.WriteHeader(http.StatusAccepted)
	}))
	b := newBench(t, nil)
	b.env["DOCKER_AUTH_CONFIG"] = `{"auths":{"` + host + `":` + auth("bob:secret") + `}}`
	b.wantPull(t, host+"/app", []byte("hello"))
	_ = b.PushBlob(t.Context(), host+"/app", descriptor([]byte("other")), opener([]byte("other")), nil)
	if len(leaked) < 1 || slices.ContainsFunc(leaked, func(h string) bool { return h != "" }) {
		t.Errorf("the other host got %q", leaked)
	}
}

func TestForeignHostAsksForItsOwnToken(t *testing.T) {
	// A public registry that serves through another one, as registry.k8s.io does.
	g, other := newGuard(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+other+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	b := newBench(t, nil)
	b.env["DOCKER_AUTH_CONFIG"] = `{"auths":{"` + host + `":` + auth("bob:right") + `}}`
	b.wantPull(t, host+"/app", []byte("hello"))
	if got := g.askedFor(); !slices.Equal(got, []string{" repository:app:pull"}) {
		t.Errorf("asked: %q", got)
	}
}

func TestRealmOfAnotherHostGetsNoCredentialsOfOurs(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	service := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		user, password, _ := r.BasicAuth()
		seen = append(seen, user+":"+password)
		fmt.Fprint(w, `{"token":"t"}`)
	}))
	asks := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer t" {
			fmt.Fprint(w, "hello")
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+service+`/token",scope="repository:app:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	evil := serve(t, asks)
	redirecting := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+evil+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	// What is stored for a registry is not for who it redirects to, and what is
	// stored for a token service is not for a registry that names it.
	for host, user := range map[string]string{redirecting: redirecting, evil: service} {
		b := newBench(t, nil)
		b.env["DOCKER_AUTH_CONFIG"] = `{"auths":{"` + user + `":` + auth("bob:secret") + `}}`
		b.wantPull(t, host+"/app", []byte("hello"))
	}
	if len(seen) < 2 || slices.ContainsFunc(seen, func(s string) bool { return s != ":" }) {
		t.Errorf("the token service got %q", seen)
	}
}

func TestLoginStoresWhatTheRegistryAccepts(t *testing.T) {
	_, host := newGuard(t, good())
	b := newBench(t, nil)
	file := b.home + "/.docker/config.json"
	write(t, file, `{"proxies":{"default":{"httpProxy":"http://p"}},"auths":{"other":{"auth":"eDp5"},"https://`+host+`/v1/":{"auth":"b2xkOm9sZA=="}}}`)

	_, err := b.Login(t.Context(), host, registry.Credential{Username: "bob", Password: "wrong"})
	if !errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), "wrong") || !strings.Contains(err.Error(), "check the user name") {
		t.Errorf("wrong password: %v", err)
	}
	r, err := b.Login(t.Context(), host, registry.Credential{Username: "bob", Password: "right"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Warning, "stored unencrypted in '"+file+"'") || r.File != file {
		t.Errorf("result: %+v", r)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	text := read(t, file)
	for _, want := range []string{`"httpProxy": "http://p"`, `"eDp5"`, base64.StdEncoding.EncodeToString([]byte("bob:right"))} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
	if strings.Contains(text, "/v1/") {
		t.Errorf("the old entry is still there: %s", text)
	}
	if cred, err := b.Credential(t.Context(), host, ""); err != nil || cred.Username != "bob" {
		t.Errorf("stored: %q, %v", cred.Username, err)
	}

	if err := b.Logout(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if cred, err := b.Credential(t.Context(), host, ""); err != nil || cred.Username != "" {
		t.Errorf("after logout: %q, %v", cred.Username, err)
	}
	if err := b.Logout(t.Context(), host); !errdefs.IsNotFound(err) {
		t.Errorf("second logout: %v", err)
	}
	if left, _ := filepath.Glob(b.home + "/.docker/.*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestLoginKeepsATokenInThePasswordsPlace(t *testing.T) {
	_, host := newGuard(t, good())
	b := newBench(t, nil)
	r, err := b.Login(t.Context(), host, registry.Credential{Username: "offline", Password: "right"})
	if err != nil || r.Warning != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	text := read(t, b.home+"/.docker/config.json")
	if !strings.Contains(text, `"identitytoken": "forever"`) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("offline:right"))) {
		t.Error(text)
	}
}

func TestLoginUsesTheHelper(t *testing.T) {
	_, host := newGuard(t, good())
	installHelper(t)
	b := newBench(t, nil)
	file := b.home + "/.docker/config.json"
	write(t, file, `{"credsStore":"fake"}`)
	r, err := b.Login(t.Context(), host, registry.Credential{Username: "bob", Password: "right"})
	if err != nil || r.Helper != "fake" || r.File != "" || r.Warning != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := b.Logout(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("store {\"ServerURL\":%q,\"Username\":\"bob\",\"Secret\":\"right\"}\nerase %s\n", host, host)
	if got := read(t, os.Getenv("HELPER_LOG")); got != want {
		t.Errorf("helper got %q, want %q", got, want)
	}
	if strings.Contains(read(t, file), "right") {
		t.Error("the password is in the file as well")
	}
}

func TestLoginKeepsASymbolicLink(t *testing.T) {
	host := serve(t, good())
	b := newBench(t, nil)
	write(t, b.home+"/real/config.json", "")
	if err := os.MkdirAll(b.home+"/.docker", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../real/config.json", b.home+"/.docker/config.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Login(t.Context(), host, registry.Credential{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	if text := read(t, b.home+"/real/config.json"); !strings.Contains(text, host) {
		t.Error(text)
	}
}

func TestParallelLoginsLoseNothing(t *testing.T) {
	b := newBench(t, nil)
	var all sync.WaitGroup
	hosts := make([]string, 12)
	for i := range hosts {
		hosts[i] = serve(t, good())
		all.Go(func() {
			if _, err := b.Login(t.Context(), hosts[i], registry.Credential{Username: "u", Password: "p"}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	text := read(t, b.home+"/.docker/config.json")
	for _, h := range hosts {
		if !strings.Contains(text, h) {
			t.Errorf("%s is missing", h)
		}
	}
}

func TestTokenServiceThatIsBusyIsAskedAgain(t *testing.T) {
	g, host := newGuard(t, good())
	var n counter
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.next() < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		g.serveToken(w, r)
	}))
	defer busy.Close()
	g.realm = busy.URL
	b := newBench(t, nil)
	b.push(t, host+"/app", []byte("hello"))
	if len(b.slept) != 2 {
		t.Errorf("waited %v", b.slept)
	}
}

func TestTokenServiceThatFailsIsNotAskedForEver(t *testing.T) {
	g, host := newGuard(t, good())
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter)
		most   int
		want   string
	}{
		"down":     {func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, 6, "bad gateway"},
		"no token": {func(w http.ResponseWriter) { fmt.Fprint(w, `{"hint":"`+strings.Repeat("x", 10_000)+`"}`) }, 1, "no token"},
		"no JSON":  {func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }, 1, "invalid character"},
		"endless":  {func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 1<<20)) }, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var n counter
			service := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n.next()
				tc.answer(w)
			}))
			g.realm = "http://" + service
			b := newBench(t, nil)
			_, err := b.Resolve(t.Context(), host+"/app")
			if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 1000 {
				t.Errorf("got %.1200v", err)
			}
			if n.count() > tc.most {
				t.Errorf("asked %d times, want at most %d", n.count(), tc.most)
			}
		})
	}
}

func TestDamagedConfigurationEndsAPullAtOnce(t *testing.T) {
	_, host := newGuard(t, good())
	b := newBench(t, nil)
	b.env["DOCKER_AUTH_CONFIG"] = `{"auths":`
	_, err := b.Resolve(t.Context(), host+"/app")
	if err == nil || !strings.Contains(err.Error(), "DOCKER_AUTH_CONFIG") || len(b.slept) > 0 || errdefs.IsUnavailable(err) {
		t.Errorf("got %v after %d waits", err, len(b.slept))
	}
}
