package cloud

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// clouds answers for all hosts of the internet.
type clouds struct {
	t     *testing.T
	env   map[string]string
	hosts map[string]http.HandlerFunc // by "host/path", the longest that fits
	mu    sync.Mutex
	asked []string
}

func (f *clouds) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Scheme+"://"+r.URL.Host+r.URL.EscapedPath())
	f.mu.Unlock()
	best := ""
	for name := range f.hosts {
		if strings.HasPrefix(r.URL.Host+r.URL.EscapedPath(), name) && len(name) > len(best) {
			best = name
		}
	}
	if best == "" {
		return nil, fmt.Errorf("nobody is at %s", r.URL.Host)
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	f.hosts[best](w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// newClouds is an internet without anybody, and a client in it.
func newClouds(t *testing.T) (*clouds, *Client) {
	t.Helper()
	f := &clouds{t: t, env: map[string]string{"HOME": t.TempDir()}, hosts: map[string]http.HandlerFunc{}}
	return f, New(Options{
		Env: func(name string) string { return f.env[name] }, Transport: f,
		Now: func() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) },
	})
}

// says answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

// only answers with a text if the request passes.
func only(text string, pass func(*http.Request) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !pass(r) {
			http.Error(w, "no\x1b[31m entry", http.StatusForbidden)
			return
		}
		fmt.Fprint(w, text)
	}
}

func put(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantText fails unless r has the text.
func wantText(t *testing.T, want string) func(io.ReadCloser, error) {
	return func(r io.ReadCloser, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestObjectsAreNamedByBucketAndKey(t *testing.T) {
	o, err := ParseObject("s3://bucket/a/b c.tar.gz")
	if err != nil || o != (Object{"bucket", "a/b c.tar.gz"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []string{"", "bucket/key", "s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3://a@b/key", "s3://h:1/key"} {
		if _, err := ParseObject(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseObject(f *testing.F) {
	f.Add("gs://bucket/key")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseObject(s)
		if err == nil && (o.Bucket == "" || o.Key == "" || strings.Contains(o.Bucket, "/")) {
			t.Errorf("%q is %+v", s, o)
		}
	})
}

func TestEndlessDocumentIsCutShort(t *testing.T) {
	f, c := newClouds(t)
	f.hosts["x.test"] = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), maxDocumentBytes+1))
	}
	req, err := request(t.Context(), http.MethodGet, "https://x.test/", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.document(req); !errdefs.IsOutOfRange(err) {
		t.Error(err)
	}
}

func TestRefusalsAreShownWithoutControlCharacters(t *testing.T) {
	f, c := newClouds(t)
	f.hosts["x.test"] = func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "\x1b[2Jbad\n"+strings.Repeat("y", 5000), http.StatusTeapot)
	}
	req, _ := request(t.Context(), http.MethodGet, "https://x.test/", "", "")
	_, err := c.document(req)
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 2*maxMessage {
		t.Errorf("%q", err)
	}
}

func TestSecretsStayOnTLS(t *testing.T) {
	for to, ok := range map[string]bool{
		"https://a.test": true, "http://127.0.0.1:1": true, "http://localhost/x": true, "http://[::1]:2": true,
		"http://a.test": false, "ftp://a.test": false, "": false, "http://127.0.0.1.a.test": false,
	} {
		if err := wantTLS(to); (err == nil) != ok {
			t.Errorf("%q: %v", to, err)
		}
	}
	f, c := newClouds(t)
	f.hosts["a.test"] = func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://b.test/", http.StatusFound) }
	f.hosts["b.test"] = says("taken")
	req, _ := request(t.Context(), http.MethodGet, "https://a.test/", "", "")
	if data, err := c.document(req); err == nil {
		t.Errorf("was sent to plain http and got %q", data)
	}
}

// silent never answers.
type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	pr, _ := io.Pipe()
	return &http.Response{StatusCode: http.StatusOK, Body: &waits{pr, r}, Request: r, Header: http.Header{}}, nil
}

type waits struct {
	*io.PipeReader
	r *http.Request
}

func (w *waits) Read([]byte) (int, error) {
	<-w.r.Context().Done()
	return 0, w.r.Context().Err()
}

func TestServerThatFallsSilentIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Transport: silent{}, Env: func(string) string { return "" }})
		req, _ := request(t.Context(), http.MethodGet, "https://x.test/", "", "")
		start := time.Now()
		_, err := c.document(req)
		if !errdefs.IsUnavailable(err) || time.Since(start) != 30*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// wantAsked compares the requests that were made.
func (f *clouds) wantAsked(want ...string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.asked, want) {
		f.t.Errorf("asked %q\nwant %q", f.asked, want)
	}
	f.asked = nil
}
