package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"den/internal/store/storetest"
)

// builder returns a Builder with a store of its own.
func builder(t *testing.T) *Builder {
	t.Helper()
	return New(Options{Store: storetest.Open(t)})
}

func write(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Uid: 1234}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(raw)
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// opened opens a request's inputs, closed with the test.
func opened(t *testing.T, b *Builder, r *Request) *inputs {
	t.Helper()
	in, err := b.open(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func read(t *testing.T, in *inputs, local, name string) string {
	t.Helper()
	l := in.locals[local]
	if l == nil {
		t.Fatalf("there is no %s", local)
	}
	data, err := os.ReadFile(filepath.Join(l.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDirectoryContext(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{"Dockerfile": "inside", "sub/Dockerfile.x": "of the context"})
	outside := write(t, t.TempDir(), map[string]string{"My.Dockerfile": "outside"})
	b := New(Options{})
	for _, c := range []struct{ file, name, text string }{
		{"", "Dockerfile", "inside"},
		{"sub/Dockerfile.x", "Dockerfile.x", "of the context"},
		{filepath.Join(outside, "My.Dockerfile"), "My.Dockerfile", "outside"},
	} {
		in := opened(t, b, &Request{Context: dir, File: c.file})
		if got := read(t, in, "dockerfile", in.opts["filename"]); got != c.text || in.opts["filename"] != c.name {
			t.Errorf("%q: %s is %q", c.file, in.opts["filename"], got)
		}
		if in.locals["context"].Dir != dir {
			t.Errorf("%q: context is %s", c.file, in.locals["context"].Dir)
		}
	}
}

func TestTarOnStandardInput(t *testing.T) {
	raw := tarOf(t, map[string]string{"Dockerfile": "in the tar", "a": "b", ".wh.kept": "literally"})
	for _, data := range [][]byte{raw, gz(t, raw)} {
		in := opened(t, builder(t), &Request{Context: "-", Stdin: bytes.NewReader(data)})
		if got := read(t, in, "dockerfile", "Dockerfile"); got != "in the tar" {
			t.Errorf("Dockerfile is %q", got)
		}
		if got := read(t, in, "context", ".wh.kept"); got != "literally" {
			t.Errorf("file is %q", got)
		}
	}
}

func TestHostileTarOnStandardInputStaysInside(t *testing.T) {
	b := builder(t)
	raw := tarOf(t, map[string]string{"../../escaped": "x"})
	if in, err := b.open(t.Context(), &Request{Context: "-", Stdin: bytes.NewReader(raw)}); err == nil {
		if _, err := os.Stat(filepath.Join(in.locals["context"].Dir, "../../escaped")); err == nil {
			t.Error("a file was written outside of the context")
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
	if drafts, err := os.ReadDir(filepath.Join(b.o.Store.Root(), "tmp")); err == nil && len(drafts) > 0 {
		t.Errorf("%d drafts were left", len(drafts))
	}
}

func TestDockerfileOnStandardInput(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{"a": "b"})
	for _, r := range []Request{
		{Context: "-", Stdin: strings.NewReader("FROM scratch")},
		{Context: dir, File: "-", Stdin: strings.NewReader("FROM scratch")},
		{Context: "https://example.com/repo.git", File: "-", Stdin: strings.NewReader("FROM scratch")},
	} {
		in := opened(t, builder(t), &r)
		if got := read(t, in, "dockerfile", "Dockerfile"); got != "FROM scratch" || in.opts["dockerfilekey"] != "dockerfile" {
			t.Errorf("%s: Dockerfile is %q, options %v", r.Context, got, in.opts)
		}
	}
}

func TestStandardInputIsOneThing(t *testing.T) {
	for _, r := range []Request{
		{Context: "-", File: "-", Stdin: strings.NewReader("")},
		{Context: "-", File: "Dockerfile", Stdin: strings.NewReader("FROM scratch")},
		{Context: "-"},
		{Context: ""},
		{Context: "/does/not/exist"},
	} {
		if _, err := builder(t).open(t.Context(), &r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: error is %v", r, err)
		}
	}
}

func TestRemoteContexts(t *testing.T) {
	for _, c := range []struct {
		context, file string
		want          map[string]string
	}{
		{"https://github.com/a/b.git#main:sub", "", map[string]string{"context": "https://github.com/a/b.git#main:sub", "filename": "Dockerfile"}},
		{"git@github.com:a/b.git", "x/D", map[string]string{"context": "git@github.com:a/b.git", "filename": "x/D"}},
		{"https://example.com/x.tar.gz", "", map[string]string{"context": "https://example.com/x.tar.gz", "filename": "Dockerfile"}},
	} {
		in := opened(t, New(Options{}), &Request{Context: c.context, File: c.file})
		if d := cmp.Diff(c.want, in.opts); d != "" || len(in.locals) > 0 {
			t.Errorf("%s: locals %v, options (-want +got):\n%s", c.context, in.locals, d)
		}
	}
}

func TestDockerfileFromAURL(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/Dockerfile" {
			http.NotFound(w, r)
			return
		}
		_, err := io.WriteString(w, "FROM scratch")
		if err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	dir := t.TempDir()
	in := opened(t, builder(t), &Request{Context: dir, File: srv.URL + "/Dockerfile"})
	if got := read(t, in, "dockerfile", "Dockerfile"); got != "FROM scratch" {
		t.Errorf("Dockerfile is %q", got)
	}
	if _, err := builder(t).open(t.Context(), &Request{Context: dir, File: srv.URL + "/other"}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error is %v", err)
	}
}

func TestNamedContexts(t *testing.T) {
	dir := t.TempDir()
	layout := write(t, t.TempDir(), map[string]string{"index.json": `{"schemaVersion":2,"manifests":[
		{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("1", 64) + `","size":1,"annotations":{"org.opencontainers.image.ref.name":"v1"}},
		{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("2", 64) + `","size":1,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}`})
	in := opened(t, New(Options{}), &Request{Context: dir, BuildContexts: []string{
		"src=" + dir, "context=" + dir, "img=docker-image://alpine:3", "repo=https://github.com/a/b.git",
		"tagged=oci-layout://" + layout + ":v1", "plain=oci-layout://" + layout,
		"pinned=oci-layout://" + layout + "@sha256:" + strings.Repeat("3", 64),
	}})
	want := map[string]string{
		"filename": "Dockerfile", "frontend.caps": "moby.buildkit.frontend.contexts+forward",
		"context:src": "local:src", "context:context": "local:_context", "context:img": "docker-image://alpine:3",
		"context:repo":   "https://github.com/a/b.git",
		"context:tagged": "oci-layout://layout0:v1@sha256:" + strings.Repeat("1", 64),
		"context:plain":  "oci-layout://layout1:latest@sha256:" + strings.Repeat("2", 64),
		"context:pinned": "oci-layout://layout2:latest@sha256:" + strings.Repeat("3", 64),
	}
	if d := cmp.Diff(want, in.opts); d != "" {
		t.Errorf("options (-want +got):\n%s", d)
	}
	if in.layouts["layout0"] != layout || in.locals["src"].Dir != dir || in.locals["_context"].Dir != dir {
		t.Errorf("layouts %v, locals %v", in.layouts, in.locals)
	}
	for _, bad := range []string{"x", "=y", "x=", "x=/does/not/exist", "x=oci-layout://" + layout + ":other"} {
		if _, err := New(Options{}).open(t.Context(), &Request{Context: dir, BuildContexts: []string{bad}}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
