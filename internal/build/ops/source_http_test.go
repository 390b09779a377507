package ops

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"den/internal/progress"
)

func sourceOp(id string, attrs map[string]string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id, Attrs: attrs}}}
}

func newHTTP(t *testing.T, env *Env, url string, attrs map[string]string) *httpOp {
	t.Helper()
	op, err := newHTTPOp(env, sourceVertex(url, attrs), url)
	if err != nil {
		t.Fatal(err)
	}
	return op.(*httpOp)
}

type secretMap map[string]string

func (m secretMap) GetSecret(_ context.Context, id string) ([]byte, error) {
	v, ok := m[id]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return []byte(v), nil
}

func TestDownloadBecomesALayer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
		w.Write([]byte("content"))
	}))
	defer srv.Close()
	env := storeEnv(t, t.TempDir())
	r, m := execOne(t, newHTTP(t, env, srv.URL+"/dir/file.txt?x=1", map[string]string{pb.AttrHTTPPerm: "0755"}))
	if got := content(t, r); got != "file.txt -rwxr-xr-x content\n" {
		t.Errorf("content:\n%s", got)
	}
	if m.NoRecord {
		t.Error("a download is not recorded")
	}
	again, m2 := execOne(t, newHTTP(t, storeEnv(t, t.TempDir()), srv.URL+"/dir/file.txt?x=1", map[string]string{pb.AttrHTTPPerm: "0755"}))
	if again.ID() != r.ID() || m2.Digest != m.Digest {
		t.Error("the same file gives another layer in another store")
	}
}

func TestUnchangedFileIsNotSentAgain(t *testing.T) {
	var gets, heads atomic.Int32
	etag := `"one"`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		if r.Method == http.MethodHead {
			heads.Add(1)
			return
		}
		gets.Add(1)
		w.Write([]byte("content of " + etag))
	}))
	defer srv.Close()
	root := t.TempDir()
	_, first := execOne(t, newHTTP(t, storeEnv(t, root), srv.URL+"/f", nil))
	op := newHTTP(t, storeEnv(t, root), srv.URL+"/f", nil)
	second, err := op.CacheMap(context.Background(), progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if second.Digest != first.Digest || gets.Load() != 1 || heads.Load() != 1 {
		t.Errorf("%d GET, %d HEAD; keys %s and %s", gets.Load(), heads.Load(), first.Digest, second.Digest)
	}
	etag = `"two"`
	_, third := execOne(t, newHTTP(t, storeEnv(t, root), srv.URL+"/f", nil))
	if third.Digest == first.Digest || gets.Load() != 2 {
		t.Errorf("a changed file was not noticed (%d GET)", gets.Load())
	}
}

func TestChecksumPinsWithoutARequest(t *testing.T) {
	var requests atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Write([]byte("content"))
	}))
	defer srv.Close()
	env := storeEnv(t, t.TempDir())
	right, wrong := digest.FromString("content").String(), digest.FromString("other").String()
	op := newHTTP(t, env, srv.URL+"/f", map[string]string{pb.AttrHTTPChecksum: right})
	if _, err := op.CacheMap(context.Background(), progress.Discard); err != nil || requests.Load() != 0 {
		t.Fatalf("%v after %d requests", err, requests.Load())
	}
	r, _ := execOne(t, op)
	if got := content(t, r); got != "f -rw------- content\n" {
		t.Errorf("content:\n%s", got)
	}
	op = newHTTP(t, env, srv.URL+"/f", map[string]string{pb.AttrHTTPChecksum: wrong})
	if _, err := op.CacheMap(context.Background(), progress.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := op.Exec(context.Background(), nil, progress.Discard); err == nil || !strings.Contains(err.Error(), right) {
		t.Errorf("wrong bytes: %v", err)
	}
}

func TestPassingErrorsOfAServerAreTriedAgain(t *testing.T) {
	var n atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("content"))
	}))
	defer srv.Close()
	r, _ := execOne(t, newHTTP(t, storeEnv(t, t.TempDir()), srv.URL+"/f", nil))
	if got := content(t, r); got != "f -rw------- content\n" {
		t.Errorf("content:\n%s", got)
	}
}

func TestMissingFileIsNotFound(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, err := newHTTP(t, storeEnv(t, t.TempDir()), srv.URL+"/f", nil).CacheMap(context.Background(), progress.Discard)
	if !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestSecretsOfAHostAuthorise(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(r.Header.Get("Authorization")))
	}))
	defer srv.Close()
	env := storeEnv(t, t.TempDir())
	env.Secrets = secretMap{"HTTP_AUTH_TOKEN_127.0.0.1": "tok", "own": "Basic xyz"}
	for want, attrs := range map[string]map[string]string{
		"Bearer tok": nil,
		"Basic xyz":  {pb.AttrHTTPAuthHeaderSecret: "own"},
	} {
		r, _ := execOne(t, newHTTP(t, env, srv.URL+"/f", attrs))
		if got := content(t, r); got != "f -rw------- "+want+"\n" {
			t.Errorf("sent %q", got)
		}
	}
	op := newHTTP(t, env, srv.URL+"/f", map[string]string{pb.AttrHTTPAuthHeaderSecret: "missing"})
	if _, err := op.CacheMap(context.Background(), progress.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("missing secret: %v", err)
	}
}

func TestNamesFromServersStayInside(t *testing.T) {
	for header, want := range map[string]string{
		`attachment; filename="../../etc/passwd"`: "passwd",
		`attachment; filename=".."`:               "download",
		`attachment; filename="dir/"`:             "f",
		`nonsense`:                                "f",
	} {
		op := &httpOp{attrs: httpAttrs{url: "http://h/f"}, found: &httpFound{Disposition: header}}
		if got := op.filename(); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
}

func TestTruncatedDownloadIsAnError(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write([]byte("short"))
	}))
	defer srv.Close()
	_, err := newHTTP(t, storeEnv(t, t.TempDir()), srv.URL+"/f", nil).CacheMap(context.Background(), progress.Discard)
	if err == nil {
		t.Error("no error")
	}
}

func TestSilentServersAreGivenUp(t *testing.T) {
	ctx, s := newStall(context.Background(), time.Millisecond)
	defer s.stop()
	<-ctx.Done()
	if !errdefs.IsUnavailable(s.cause()) {
		t.Errorf("cause %v", s.cause())
	}
	ctx, s = newStall(context.Background(), time.Hour)
	s.alive()
	s.stop()
	if <-ctx.Done(); errdefs.IsUnavailable(s.cause()) {
		t.Error("a finished download counts as stalled")
	}
}
