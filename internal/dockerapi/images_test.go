package dockerapi

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"den/internal/build"
	"den/internal/engine"
	denimage "den/internal/image"
	"den/internal/oci"
	"den/internal/registry"
	"den/internal/store"
	"den/internal/store/storetest"
	"den/internal/sys"
)

// imageEngine is an engine with two containers of one image, which hears of events.
type imageEngine struct {
	Engine
	mu     sync.Mutex
	events []string
	config oci.Digest
}

func (e *imageEngine) Emit(ev engine.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, ev.Type+" "+ev.Action)
}

func (e *imageEngine) Containers(context.Context, ...engine.DescribeOption) ([]*engine.Container, error) {
	size := int64(7)
	one := &engine.Container{ID: "c1", Name: "one", ConfigDigest: e.config, WritableBytes: &size, Request: &engine.CreateRequest{}}
	return []*engine.Container{one}, nil
}

func (e *imageEngine) Volumes(context.Context) ([]*engine.Volume, error) { return nil, nil }

func (e *imageEngine) VolumeUsers(context.Context) (map[string][]string, error) { return nil, nil }

type imageRig struct {
	*Server
	engine *imageEngine
	host   string // of a registry that wants u:p
	asked  []string
}

func newImageRig(t *testing.T) *imageRig {
	t.Helper()
	r := &imageRig{engine: &imageEngine{}}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	var mu sync.Mutex
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		user, password, _ := q.BasicAuth()
		mu.Lock()
		r.asked = append(r.asked, user)
		mu.Unlock()
		if user != "u" || password != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(h.Close)
	r.host = strings.TrimPrefix(h.URL, "http://")
	st, err := store.Open(t.Context(), t.TempDir(), store.Options{EngineDir: t.TempDir(), Image: os.Geteuid() != 0 || storetest.Images(), Durability: "none"})
	if err != nil {
		t.Skipf("needs a local file system that can hold a store: %v", err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	reg, err := registry.New(registry.Options{
		DaemonJSON: "/dev/null", Env: func(string) string { return "" }, ConfigDir: t.TempDir(),
		Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	})
	if err != nil {
		t.Fatal(err)
	}
	o := denimage.Options{Platform: oci.Platform{OS: "linux", Architecture: "amd64"}, InUse: func(d oci.Digest) []string {
		if d == r.engine.config {
			return []string{"one"}
		}
		return nil
	}}
	r.Server = New(Options{Engine: r.engine, Store: st, StorageDriver: "test", Access: func(f registry.CredentialFunc) Access {
		with := reg
		if f != nil {
			with = reg.WithCredentials(f)
		}
		images := denimage.New(st, with, o)
		return Access{Images: images, Registry: with, Builder: build.New(build.Options{Store: st, Images: images, InUserns: !sys.MakesDevices(), Recorded: !sys.MayChown()})}
	}})
	return r
}

// header sends a request with headers, as real clients do, over a connection.
func (r *imageRig) do(t *testing.T, method, target, body string, headers map[string]string) (int, string) {
	t.Helper()
	h := httptest.NewServer(r)
	defer h.Close()
	q, err := http.NewRequestWithContext(t.Context(), method, h.URL+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range headers {
		q.Header.Set(name, v)
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

func tarOf(t *testing.T, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Uid: os.Geteuid(), Gid: os.Getegid()}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (r *imageRig) imported(t *testing.T, name string) string {
	t.Helper()
	status, body := r.do(t, "POST", "/images/create?fromSrc=-&changes=CMD+%5B%22sh%22%5D&changes=LABEL+a%3Db&repo="+url.QueryEscape(name), tarOf(t, map[string]string{"f": name}), nil)
	var line progressLine
	if status != 200 || json.Unmarshal([]byte(body), &line) != nil || !strings.HasPrefix(line.Status, "sha256:") {
		t.Fatalf("import: %d %s", status, body)
	}
	return line.Status
}

func TestImagesAreListedInTheWordsOfAVersion(t *testing.T) {
	r := newImageRig(t)
	id := r.imported(t, "some/name:1")
	for _, c := range []struct {
		target  string
		want    []string
		without []string
	}{
		{"/v1.41/images/json", []string{`"Id":"` + id, `"RepoTags":["some/name:1"]`, `"VirtualSize":`, `"SharedSize":-1`, `"Containers":-1`, `"Labels":{"a":"b"}`}, nil},
		{"/v1.50/images/json?shared-size=1", []string{`"SharedSize":0`, `"RepoDigests":[]`}, []string{"VirtualSize"}},
		{`/images/json?filters={"reference":["no*"]}`, []string{"[]"}, nil},
		{`/images/json?filters={"label":{"a=b":true},"dangling":["false"]}`, []string{id}, nil},
		{`/v1.30/images/json?filter=some/name`, []string{id}, nil},
		{"/v1.41/images/some/name:1/json", []string{`"Cmd":["sh"]`, `"Hostname":""`, `"VirtualSize":`, `"GraphDriver":{"Data":null,"Name":"test"}`, `"ContainerConfig":{`, `"Parent":""`}, nil},
		{"/v1.56/images/some/name:1/json", []string{`"Config":{"Cmd":["sh"]`}, []string{"Hostname", "GraphDriver", "VirtualSize", "ContainerConfig"}},
		{"/images/" + id[7:20] + "/json", []string{id}, nil},
		{"/images/" + url.PathEscape(id) + "/history", []string{`"Id":"` + id, `"Tags":["some/name:1"]`}, nil},
	} {
		status, body := r.do(t, "GET", strings.NewReplacer(`"`, "%22", "{", "%7B", "}", "%7D").Replace(c.target), "", nil)
		if status != 200 {
			t.Errorf("%s: %d %s", c.target, status, body)
		}
		for _, w := range c.want {
			if !strings.Contains(body, w) {
				t.Errorf("%s: no %s in %s", c.target, w, body)
			}
		}
		for _, w := range c.without {
			if strings.Contains(body, w) {
				t.Errorf("%s: %s in %s", c.target, w, body)
			}
		}
	}
}

func TestImageThatIsNotHereIsDockersNotFound(t *testing.T) {
	r := newImageRig(t)
	for target, want := range map[string]string{
		"GET /images/nosuch/json":                        "No such image: nosuch:latest",
		"GET /images/h:5000/a/b:c/history":               "No such image: h:5000/a/b:c",
		"GET /images/get?names=nosuch":                   "No such image: nosuch:latest",
		"POST /images/nosuch/tag?repo=x":                 "No such image: nosuch:latest",
		"DELETE /images/nosuch":                          "No such image: nosuch:latest",
		"POST /images/h/n/push?tag=1":                    "An image does not exist locally with the tag: h/n",
		"POST /images/create?fromImage=" + r.host + "/x": "pull access denied for " + r.host + "/x, repository does not exist or may require 'docker login'",
	} {
		method, path, _ := strings.Cut(target, " ")
		if path == "/images/create?fromImage="+r.host+"/x" {
			path += "&tag=1"
		}
		status, body := r.do(t, method, path, "", nil)
		if status != 404 || !strings.HasPrefix(message(t, body), want) {
			t.Errorf("%s: %d %s, want %s", target, status, body, want)
		}
	}
	for _, target := range []string{"POST /images/create?fromImage=UPPER", "POST /images/create", "GET /images/get", "POST /images/x/tag?repo=a%20b", "GET /images/x/json?platform=%7B", "POST /build?remote=/etc",
		"POST /build?buildargs=x", "GET /system/df?type=x", "POST /images/create?fromSrc=file:///etc/passwd", "POST /build/prune?keep-storage=-1", "GET /images/search?term=x&limit=1000"} {
		method, path, _ := strings.Cut(target, " ")
		if status, body := r.do(t, method, path, "", nil); status != 400 {
			t.Errorf("%s: %d %s, want 400", target, status, body)
		}
	}
}

func TestPushAndPullUseTheClientsCredential(t *testing.T) {
	r := newImageRig(t)
	name := r.host + "/a/b"
	r.imported(t, name+":1")
	auth := map[string]string{"X-Registry-Auth": base64.URLEncoding.EncodeToString([]byte(`{"username":"u","password":"p","serveraddress":"` + r.host + `"}`))}
	status, body := r.do(t, "POST", "/v1.41/images/"+name+"/push?tag=1", "", auth)
	if status != 200 || !strings.Contains(body, "The push refers to repository ["+name+"]") || !strings.Contains(body, `"aux":{"Digest":"sha256:`) || !strings.Contains(body, `"Tag":"1"`) || strings.Contains(body, "error") {
		t.Fatalf("push: %d %s", status, body)
	}
	status, body = r.do(t, "POST", "/images/"+name+"/push?tag=1", "", map[string]string{"X-Registry-Auth": "e30="})
	if status != 200 || !strings.Contains(body, `"errorDetail":{"message":"denied: `) || !strings.Contains(body, `"error":"`) {
		t.Errorf("push without credential: %d %s", status, body)
	}
	if status, body = r.do(t, "DELETE", "/images/"+name+":1", "", nil); status != 200 || !strings.Contains(body, `{"Untagged":"`+name+`:1"}`) {
		t.Errorf("remove: %d %s", status, body)
	}
	status, body = r.do(t, "POST", "/images/create?fromImage="+url.QueryEscape(name)+"&tag=1", "", auth)
	if status != 200 || !strings.Contains(body, `{"status":"Pulling from a/b","id":"1"}`) || !strings.Contains(body, `"Status: Downloaded newer image for `+name+":1") {
		t.Errorf("pull: %d %s", status, body)
	}
	if status, body = r.do(t, "GET", "/distribution/"+name+":1/json", "", auth); status != 200 || !strings.Contains(body, `"Platforms":[{"architecture":"amd64","os":"linux"}]`) {
		t.Errorf("distribution: %d %s", status, body)
	}
	login := func(password string) (int, string) {
		return r.do(t, "POST", "/auth", fmt.Sprintf(`{"username":"u","password":%q,"serveraddress":%q}`, password, r.host), map[string]string{"Content-Type": "application/json"})
	}
	if status, body := login("p"); status != 200 || !strings.Contains(body, `"Status":"Login Succeeded"`) {
		t.Errorf("login: %d %s", status, body)
	}
	if status, body := login("wrong"); status != 401 {
		t.Errorf("login with another password: %d %s", status, body)
	}
	for _, want := range []string{"image import", "image push", "image untag", "image pull"} {
		if !slices.Contains(r.engine.events, want) {
			t.Errorf("no event %q in %v", want, r.engine.events)
		}
	}
}

func TestLoginsWithoutABodyAreRefused(t *testing.T) {
	resp, text := ask(t, New(Options{Engine: &fake{}}), "POST", "/v1.51/auth", "")
	if resp.StatusCode != 400 || message(t, text) != "invalid X-Registry-Auth header: invalid JSON: EOF" {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
}

func TestSavedImagesLoad(t *testing.T) {
	r := newImageRig(t)
	id := r.imported(t, "x:1")
	status, archive := r.do(t, "GET", "/images/get?names=x:1", "", nil)
	if status != 200 {
		t.Fatal(archive)
	}
	if status, body := r.do(t, "DELETE", "/images/"+id+"?force=1", "", nil); status != 200 || !strings.Contains(body, `{"Deleted":"`+id+`"}`) {
		t.Errorf("remove: %d %s", status, body)
	}
	if status, body := r.do(t, "POST", "/images/load?quiet=1", archive, nil); status != 200 || body != `{"stream":"Loaded image: x:1\n"}`+"\n" {
		t.Errorf("load: %d %s", status, body)
	}
	if status, body := r.do(t, "POST", "/images/load", "nonsense", nil); status != 400 {
		t.Errorf("load nonsense: %d %s", status, body)
	}
}

func TestImageInUseStaysWithDockersSentence(t *testing.T) {
	r := newImageRig(t)
	id := r.imported(t, "x:1")
	r.engine.config = oci.Digest(id)
	for target, want := range map[string]string{
		"/images/x:1":   `conflict: unable to remove repository reference "x:1" (must force) - container one is using its referenced image ` + id[7:19],
		"/images/" + id: "conflict: unable to delete " + id[7:19] + " (must be forced) - image is being used by stopped container one",
	} {
		if status, body := r.do(t, "DELETE", target, "", nil); status != 409 || message(t, body) != want {
			t.Errorf("%s: %d %s", target, status, body)
		}
	}
	status, body := r.do(t, "GET", "/v1.51/system/df", "", nil)
	if status != 200 || !strings.Contains(body, `"LayersSize":`) || !strings.Contains(body, `"Containers":1,`) || !strings.Contains(body, `"SizeRw":7`) {
		t.Errorf("df: %d %s", status, body)
	}
	status, body = r.do(t, "GET", "/v1.52/system/df", "", nil)
	if status != 200 || !strings.Contains(body, `"ImageUsage":{"ActiveCount":1,"TotalCount":1`) || !strings.Contains(body, "LayersSize") || strings.Contains(body, "Items") {
		t.Errorf("df: %d %s", status, body) // of a client that takes the newest version and knows the words of older ones
	}
	status, body = r.do(t, "GET", "/v1.52/system/df?verbose=1", "", nil)
	if status != 200 || strings.Contains(body, "LayersSize") || !strings.Contains(body, `"Items":[{"Containers":1,`) {
		t.Errorf("df: %d %s", status, body)
	}
	if status, body := r.do(t, "GET", "/v1.41/system/df?type=volume", "", nil); status != 200 || !strings.Contains(body, "LayersSize") || !strings.Contains(body, "BuilderSize") {
		t.Errorf("df: %d %s", status, body)
	}
	for v, want := range map[string]string{"1.50": `"Containers":-1,`, "1.51": `"Containers":1,`} {
		if status, body := r.do(t, "GET", "/v"+v+"/images/json", "", nil); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %s", v, status, body, want)
		}
	}
	for target, want := range map[string]int{
		"/v1.48/images/x:1/json?platform=linux%2Fs390x":       200,
		"/v1.49/images/x:1/json?platform=linux%2Fs390x":       404,
		"/v1.47/images/x:1/history?platform=linux%2Fs390x":    200,
		"/v1.48/images/x:1/history?platform=linux%2Fs390x":    404,
		"/images/x:1/json?manifests=1&platform=linux%2Famd64": 400,
		"/images/json?identity=1":                             400,
		"/v1.54/images/x:1/attestations":                      404,
		"/v1.55/images/x:1/attestations":                      200,
		"/images/x:1/attestations?platform=a&platform=b":      400,
	} {
		if status, body := r.do(t, "GET", target, "", nil); status != want {
			t.Errorf("%s: %d %s", target, status, body)
		}
	}
	if status, body := r.do(t, "POST", "/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D", "", nil); status != 200 || !strings.Contains(body, `"ImagesDeleted":null`) {
		t.Errorf("prune: %d %s", status, body)
	}
}

func TestClassicBuildTalksAsClientsParse(t *testing.T) {
	r := newImageRig(t)
	r.imported(t, "base:1")
	context := tarOf(t, map[string]string{"Dockerfile": "FROM base:1\nARG V\nARG W=w\nLABEL v=$V w=$W\nCOPY f /g\n", "f": "text"})
	query := "/v1.41/build?t=out:1&t=out:2&version=1&buildargs=" + url.QueryEscape(`{"V":"2","W":null}`) + "&labels=" + url.QueryEscape(`{"l":"m"}`)
	status, body := r.do(t, "POST", query, context, map[string]string{"Content-Type": "application/x-tar", "X-Registry-Config": "e30="})
	if status != 200 || !strings.Contains(body, `{"stream":"Step 1/2 : FROM docker.io/library/base:1`) || !strings.Contains(body, `Step 2/2 : COPY f /g\n`) ||
		!strings.Contains(body, `"aux":{"ID":"sha256:`) || !strings.Contains(body, `"stream":"Successfully built `) || !strings.HasSuffix(body, `{"stream":"Successfully tagged out:1\n"}`+"\n"+`{"stream":"Successfully tagged out:2\n"}`+"\n") {
		t.Fatalf("build: %d %s", status, body)
	}
	if status, body := r.do(t, "GET", "/images/out:2/json", "", nil); status != 200 || !strings.Contains(body, `"Labels":{"a":"b","l":"m","v":"2","w":"w"}`) {
		t.Errorf("built: %d %s", status, body)
	}
	status, body = r.do(t, "POST", "/build?q=1", context, nil)
	if status != 200 || !strings.HasPrefix(body, `{"stream":"sha256:`) || strings.Count(body, "\n") != 1 {
		t.Errorf("quiet build: %d %s", status, body)
	}
	status, body = r.do(t, "POST", "/build", tarOf(t, map[string]string{"Dockerfile": "FROM base:1\nCOPY nosuch /\n"}), nil)
	if status != 200 && status != 400 && status != 404 || !strings.Contains(body, "nosuch") {
		t.Errorf("failing build: %d %s", status, body)
	}
	if status, body = r.do(t, "POST", "/build", tarOf(t, map[string]string{"Dockerfile": "FROMM base:1\n"}), nil); status != 400 || !strings.Contains(message(t, body), "unknown instruction: FROMM") {
		t.Errorf("bad Dockerfile: %d %s", status, body)
	}
	if status, _ = r.do(t, "POST", "/build?version=2", "", nil); status != 501 {
		t.Errorf("BuildKit: %d", status)
	}
}

func FuzzCredentialHeaders(f *testing.F) {
	for _, s := range []string{"e30=", "e30", base64.StdEncoding.EncodeToString([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`)), "%", strings.Repeat("A", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c, ok := headerCredential(s); ok != (c != registry.Credential{}) {
			t.Errorf("%q: %v, %v", s, c, ok)
		}
		for host := range configCredentials(s) {
			if host == "" {
				t.Errorf("%q: a credential for nobody", s)
			}
		}
	})
}

func TestCredentialsOfABuildAreFoundByHost(t *testing.T) {
	for text, want := range map[string]string{
		`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`: "docker.io u p",
		`{"r:5000":{"username":"u","password":"q"}}`:                "r:5000 u q",
	} {
		got := configCredentials(base64.StdEncoding.EncodeToString([]byte(text)))
		host, rest, _ := strings.Cut(want, " ")
		c, ok := got[host]
		if !ok || c.Username+" "+c.Password != rest {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}
