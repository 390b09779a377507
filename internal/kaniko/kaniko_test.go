package kaniko

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"

	"den/internal/build"
	"den/internal/cloud"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func lookup(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) {
		v, ok := m[k]
		return v, ok
	}
}

func TestDestinationsGoToTheirTargets(t *testing.T) {
	o := Options{Targets: []string{"a", "b"}, Destinations: []string{"a=example.com/a:1", "plain", "b=b:2"}}
	jobs, err := o.Jobs()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, j := range jobs {
		for _, d := range j.Destinations {
			got = append(got, j.Target+" "+d.Name())
		}
	}
	want := []string{"a example.com/a:1", "a index.docker.io/library/plain:latest", "b index.docker.io/library/b:2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, o := range map[string]Options{
		"none": {}, "no such target": {Targets: []string{"a"}, Destinations: []string{"c=x"}},
		"bad": {Destinations: []string{"UPPER:case"}}, "name file": {NoPush: true, TagDigestFile: "x"},
	} {
		if _, err := o.Jobs(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if jobs, err := (&Options{NoPush: true}).Jobs(); err != nil || len(jobs) != 1 {
		t.Errorf("%v, %v", jobs, err)
	}
	o = Options{Targets: []string{"app", "test"}, Destinations: []string{"x"}, DigestFile: "f"}
	if jobs, err = o.Jobs(); err != nil || !o.Delivers(jobs[0]) || o.Delivers(jobs[1]) {
		t.Errorf("a target without a destination is built only: %+v, %v", jobs, err)
	}
}

func TestRequestHasWhatWasTyped(t *testing.T) {
	o := Options{
		Env: env(map[string]string{"FROM_ENV": "v"}), BuildArgs: []string{"FROM_ENV", "UNSET", "A=b=c"}, Reproducible: true, SingleSnapshot: true,
		IgnorePaths: []string{"/x"}, Compression: "zstd", CompressionLevel: 7, Dockerfile: "Dockerfile", CustomPlatform: "linux/arm64",
	}
	r, err := o.Request(Job{Target: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"FROM_ENV=v", "UNSET=", "A=b=c", "SOURCE_DATE_EPOCH=0"}, r.BuildArgs); diff != "" {
		t.Error(diff)
	}
	if !r.Clamp || !r.Rewriting.Squash || r.Rewriting.Drop[0] != "/x" || r.Format.Compression != "zstd" || r.Format.Level != 7 || r.Target != "t" || r.Platforms[0] != "linux/arm64" {
		t.Errorf("%+v", r)
	}
	o.BuildArgs = []string{"SOURCE_DATE_EPOCH=5"}
	if r, _ := o.Request(Job{}); !slices.Equal(r.BuildArgs, o.BuildArgs) {
		t.Errorf("args %q", r.BuildArgs)
	}
	for _, bad := range []Options{{Compression: "xz"}, {ImageFormat: "v1"}, {ImageFormat: "docker", Compression: "zstd"}} {
		if _, err := bad.Request(Job{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestDockerfileHereGoesBeforeTheContexts(t *testing.T) {
	t.Chdir(t.TempDir())
	o := Options{Dockerfile: "Dockerfile"}
	if got := o.dockerfile(); got != "Dockerfile" {
		t.Errorf("not here: %s", got)
	}
	if err := os.WriteFile("Dockerfile", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := o.dockerfile(); !filepath.IsAbs(got) {
		t.Errorf("here: %s", got)
	}
	o.Dockerfile = "https://example.com/Dockerfile"
	if got := o.dockerfile(); got != o.Dockerfile {
		t.Errorf("URL: %s", got)
	}
}

func TestGitContextsBecomeBuildKitsURLs(t *testing.T) {
	const sha = "0123456789012345678901234567890123456789"
	for context, want := range map[string]string{
		"git://github.com/acme/app":                              "https://github.com/acme/app.git?keep-git-dir=true&submodules=false",
		"git://github.com/acme/app.git#refs/heads/b":             "https://github.com/acme/app.git?keep-git-dir=true&ref=refs%2Fheads%2Fb&submodules=false",
		"git://u:p@github.com/acme/app.git#refs/heads/b#" + sha:  "https://github.com/acme/app.git?keep-git-dir=true&ref=" + sha + "&submodules=false",
		"git://github.com/acme/app.git##" + sha:                  "https://github.com/acme/app.git?keep-git-dir=true&ref=" + sha + "&submodules=false",
		"https://gitlab.example.com/g/app.git#refs/merge/7/head": "https://gitlab.example.com/g/app.git?keep-git-dir=true&ref=refs%2Fmerge%2F7%2Fhead&submodules=false",
	} {
		o := Options{Context: context, Env: env(nil)}
		var r build.Request
		if _, err := o.Open(t.Context(), Source{}, &r); err != nil || r.Context != want {
			t.Errorf("%s: %s, %v", context, r.Context, err)
		}
	}
	o := Options{Context: "git://example.com/app.git", ContextSubPath: "/a/../b", Env: env(map[string]string{"GIT_PULL_METHOD": "http", "GIT_TOKEN": "tok"}),
		Git: Git{Branch: "main", RecurseSubmodules: true}}
	var r build.Request
	if _, err := o.Open(t.Context(), Source{}, &r); err != nil || r.Context != "http://example.com/app.git?keep-git-dir=true&ref=main&subdir=b&submodules=true" || r.SubDir != "" {
		t.Errorf("%+v, %v", r, err)
	}
	if r.GitAuth.Remote != "http://example.com/app.git" || r.GitAuth.Header != "Basic "+base64.StdEncoding.EncodeToString([]byte("tok:")) {
		t.Errorf("%+v", r.GitAuth)
	}
	for _, bad := range []string{"git://", "git:///x", "git://a b/c"} {
		o := Options{Context: bad, Env: env(nil)}
		if _, err := o.Open(t.Context(), Source{}, &build.Request{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzGitContext(f *testing.F) {
	f.Add("github.com/acme/app.git#refs/heads/b#0123")
	f.Fuzz(func(t *testing.T, rest string) {
		o := Options{Env: env(map[string]string{"GIT_TOKEN": "hidden"})}
		var r build.Request
		if o.git(rest, &r) == nil && strings.Contains(r.Context, "hidden") {
			t.Error("the token is in the URL")
		}
	})
}

func TestInsecurityIsForWhoItWasAllowed(t *testing.T) {
	tag, err := name.NewTag("reg.test:5000/app:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		r                    Registry
		insecure, unverified []string
	}{
		{Registry{}, nil, nil},
		{Registry{Insecure: true}, []string{"reg.test:5000"}, nil},
		{Registry{InsecurePull: true}, []string{"!reg.test:5000", "*"}, nil},
		{Registry{Insecure: true, InsecurePull: true, InsecureRegistries: []string{"x"}}, []string{"x", "reg.test:5000", "*"}, nil},
		{Registry{SkipTLSVerify: true}, nil, []string{"reg.test:5000"}},
		{Registry{SkipTLSVerifyPull: true, SkipTLSVerifyRegistries: []string{"y"}}, nil, []string{"y", "!reg.test:5000", "*"}},
	} {
		s := test.r.Settings([]name.Tag{tag})
		if !slices.Equal(s.Insecure, test.insecure) || !slices.Equal(s.SkipVerify, test.unverified) {
			t.Errorf("%+v: %q %q", test.r, s.Insecure, s.SkipVerify)
		}
	}
	s := Registry{Mirrors: []string{"m"}, Maps: []string{"a=b; c=d/e;", "f=g"}, SkipDefaultFallback: true}.Settings(nil)
	if diff := cmp.Diff([]string{"a=b", "c=d/e", "f=g", "m"}, s.Mirrors); diff != "" || !s.MirrorsOnly {
		t.Error(diff)
	}
}

func TestHelpersAreAskedInTurn(t *testing.T) {
	vars := map[string]string{
		"KANIKO_MY_REG_TEST_USER": "env", "KANIKO_MY_REG_TEST_PASSWORD": "p", "KANIKO_TEST_USER": "wide", "KANIKO_TEST_PASSWORD": "p",
		"CI_REGISTRY": "gitlab.example.com:443", "CI_REGISTRY_USER": "gitlab-ci-token", "CI_REGISTRY_PASSWORD": "job",
		"CI_DEPENDENCY_PROXY_SERVER": "proxy.example.com", "CI_DEPENDENCY_PROXY_USER": "gitlab-ci-token", "CI_DEPENDENCY_PROXY_PASSWORD": "dep",
	}
	c := cloud.New(cloud.Options{Env: env(nil), Transport: nobody{}})
	for _, test := range []struct {
		helpers    []string
		host, want string
	}{
		{nil, "my-reg.test", "env:p"}, {nil, "other.test", "wide:p"}, {nil, "gitlab.example.com", "gitlab-ci-token:job"},
		{nil, "proxy.example.com", "gitlab-ci-token:dep"}, {nil, "docker.io", ":"}, {nil, "gcr.io", ":"},
		{[]string{""}, "my-reg.test", ":"}, {[]string{"gitlab"}, "my-reg.test", ":"}, {[]string{"gitlab", "env"}, "my-reg.test", "env:p"},
	} {
		ask, err := Keychain(test.helpers, c, lookup(vars))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ask(t.Context(), test.host, "")
		if err != nil || got.Username+":"+got.Password != test.want {
			t.Errorf("%q %s: %+v, %v", test.helpers, test.host, got, err)
		}
	}
	if _, err := Keychain([]string{"vault"}, c, lookup(nil)); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

type nobody struct{}

func (nobody) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("nobody is there")
}

// pusher fails as often as it is told to.
type pusher struct {
	errs   []error
	pushed []string
}

func (p *pusher) PushBlobs(_ context.Context, _ *image.Blobs, names []string, _ image.PushOptions) error {
	if len(p.errs) > 0 {
		err := p.errs[0]
		p.errs = p.errs[1:]
		return err
	}
	p.pushed = append(p.pushed, names...)
	return nil
}

func (p *pusher) ExportLayout(context.Context, string, *image.Blobs, []string, image.Format) error {
	return nil
}

func (p *pusher) ExportDocker(_ context.Context, w io.Writer, _ *image.Blobs, names []string, _ image.Format) error {
	_, err := io.WriteString(w, strings.Join(names, ","))
	return err
}

const testDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// delivered delivers one image and returns the waits and the log.
func delivered(t *testing.T, o Options, p *pusher) (waits []time.Duration, log string, err error) {
	t.Helper()
	var b bytes.Buffer
	l, err := NewLog(&b, LogOptions{Verbosity: "info", Format: "text"})
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := o.Jobs()
	if err != nil {
		t.Fatal(err)
	}
	if o.Env == nil {
		o.Env = env(nil)
	}
	d := &Deliverer{Options: &o, Images: p, Log: l, Sink: progress.Discard, Sleep: func(_ context.Context, w time.Duration) error {
		waits = append(waits, w)
		return nil
	}}
	err = d.Deliver(t.Context(), jobs[0], &image.Blobs{Target: oci.Descriptor{Digest: testDigest}})
	return waits, b.String(), err
}

func TestDigestFilesHaveKanikosFormats(t *testing.T) {
	dir := t.TempDir()
	o := Options{
		Destinations: []string{"busybox", "user/app:1", "localhost:5000/team/app"}, TarPath: dir + "/tar",
		DigestFile: dir + "/new/dir/digest", NameDigestFile: dir + "/name", TagDigestFile: dir + "/tag",
		Env: env(map[string]string{"BUILDER_OUTPUT": dir}),
	}
	p := &pusher{}
	_, log, err := delivered(t, o, p)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"new/dir/digest": testDigest,
		"name":           "index.docker.io/library/busybox@" + testDigest + "\nindex.docker.io/user/app@" + testDigest + "\nlocalhost:5000/team/app@" + testDigest + "\n",
		"tag":            "index.docker.io/library/busybox:latest@" + testDigest + "\nindex.docker.io/user/app:1@" + testDigest + "\nlocalhost:5000/team/app:latest@" + testDigest + "\n",
		"tar":            "index.docker.io/library/busybox:latest,index.docker.io/user/app:1,localhost:5000/team/app:latest",
		"images":         `{"name":"busybox","digest":"` + testDigest + "\"}\n" + `{"name":"user/app:1","digest":"` + testDigest + "\"}\n" + `{"name":"localhost:5000/team/app","digest":"` + testDigest + "\"}\n",
	} {
		got, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", file, cmp.Diff(want, string(got)), err)
		}
	}
	for _, line := range []string{"Pushing image to user/app:1", "Pushed index.docker.io/library/busybox@" + testDigest} {
		if !strings.Contains(log, line) {
			t.Errorf("the log lacks %q:\n%s", line, log)
		}
	}
}

func TestPushIsTriedAgainAsOftenAsAsked(t *testing.T) {
	broken := errors.New("broken")
	o := Options{Destinations: []string{"a.test/x:1"}}
	if waits, _, err := delivered(t, o, &pusher{errs: []error{broken}}); !errors.Is(err, broken) || len(waits) > 0 || !strings.Contains(err.Error(), "failed to push to destination a.test/x:1") {
		t.Errorf("%v after %v", err, waits)
	}
	o.Registry.PushRetry = 2
	waits, _, err := delivered(t, o, &pusher{errs: []error{broken, broken}})
	if err != nil || !slices.Equal(waits, []time.Duration{time.Second, 2 * time.Second}) {
		t.Errorf("%v after %v", err, waits)
	}
	if _, _, err := delivered(t, o, &pusher{errs: []error{broken, broken, broken}}); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestImmutableTagsMayBeTakenForSuccess(t *testing.T) {
	refused := errors.New("tag_invalid: The image tag '1' already exists in the 'x' repository and cannot be overwritten because the tag is immutable. (answered 400)")
	o := Options{Destinations: []string{"a.test/x:1"}}
	if _, _, err := delivered(t, o, &pusher{errs: []error{refused}}); !errors.Is(err, refused) {
		t.Error(err)
	}
	o.Registry.IgnoreImmutableTags = true
	if _, log, err := delivered(t, o, &pusher{errs: []error{refused}}); err != nil || !strings.Contains(log, "Immutable tag error ignored for a.test/x@"+testDigest) {
		t.Errorf("%v: %s", err, log)
	}
	if _, _, err := delivered(t, o, &pusher{errs: []error{errors.New("denied")}}); err == nil {
		t.Error("another refusal is no success")
	}
}

func TestDigestIsPutToAURL(t *testing.T) {
	var got string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Method + " " + string(body)
		if r.URL.Path == "/closed" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(srv.Close)
	d := &Deliverer{Transport: srv.Client().Transport}
	if err := d.write(t.Context(), srv.URL+"/x?sig=hidden", []byte("digest")); err != nil || got != "PUT digest" {
		t.Errorf("%q, %v", got, err)
	}
	if err := d.write(t.Context(), srv.URL+"/closed?sig=hidden", nil); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
	srv.Close()
	if err := d.write(t.Context(), srv.URL+"/x?sig=hidden", nil); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
}

func TestStepsAreShownOnceForEachState(t *testing.T) {
	var log, out, errOut bytes.Buffer
	l, err := NewLog(&log, LogOptions{Verbosity: "info", Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	p := NewProgress(l, &out, &errOut)
	now := time.Now()
	for range 2 {
		p.Event(progress.Event{Vertex: &progress.Vertex{Digest: "sha256:1", Name: "[1/1] RUN make", Started: &now}})
		p.Event(progress.Event{Vertex: &progress.Vertex{Digest: "sha256:2", Name: "[internal] load context", Started: &now}})
		p.Event(progress.Event{Vertex: &progress.Vertex{Digest: "sha256:3", Name: "[2/2] COPY a b", Started: &now, Cached: true}})
	}
	p.Event(progress.Event{Log: &progress.Log{Stream: 1, Data: []byte("made\n")}})
	p.Event(progress.Event{Log: &progress.Log{Stream: 2, Data: []byte("moaned\n")}})
	p.Event(progress.Event{Warning: &progress.Warning{Short: []byte("careful")}})
	text := log.String()
	for line, times := range map[string]int{"[1/1] RUN make": 1, "[internal]": 0, "Using cached layer for [2/2] COPY a b": 1, "careful": 1} {
		if strings.Count(text, line) != times {
			t.Errorf("%q is not there %d times:\n%s", line, times, text)
		}
	}
	if out.String() != "made\n" || errOut.String() != "moaned\n" {
		t.Errorf("%q %q", out.String(), errOut.String())
	}
	for _, bad := range []LogOptions{{"loud", "text", false}, {"info", "xml", false}} {
		if _, err := NewLog(&log, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func FuzzGitFlag(f *testing.F) {
	f.Add("branch=x,depth=1")
	f.Fuzz(func(t *testing.T, s string) {
		var g Git
		if err := g.Set(s); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}
