package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"den/internal/oci"
	"den/internal/registry"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
)

// bench is a client with its surroundings, none of which are the host's.
type bench struct {
	*registry.Client
	env     map[string]string
	home    string
	mu      sync.Mutex
	slept   []time.Duration
	notices []string
}

// newBench returns a client that never really waits. change may be nil.
func newBench(t *testing.T, change func(*registry.Options)) *bench {
	t.Helper()
	b := &bench{home: t.TempDir()}
	b.env = map[string]string{"HOME": b.home}
	o := registry.Options{
		DaemonJSON: b.home + "/daemon.json",
		Env:        func(name string) string { return b.env[name] },
		Backoff:    func(int) time.Duration { return time.Second },
		Sleep: func(ctx context.Context, d time.Duration) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.slept = append(b.slept, d)
			return ctx.Err()
		},
		Notice: func(line string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.notices = append(b.notices, line)
		},
	}
	write(t, o.DaemonJSON, "{}")
	if change != nil {
		change(&o)
	}
	c, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	b.Client = c
	return b
}

// good is a registry that behaves.
func good() http.Handler { return ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))) }

// serve runs a registry on a loopback address and returns HOST:PORT.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// route is a handler that lets first look at each request; true means that it
// has answered.
func route(next http.Handler, first func(http.ResponseWriter, *http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !first(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// isBlob reports a download of a blob.
func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

// isManifest reports a request for a manifest.
func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

// breakOff ends the connection in the middle.
func breakOff() { panic(http.ErrAbortHandler) }

// counter counts requests.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func randomBytes(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func descriptor(data []byte) oci.Descriptor {
	return oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// opener opens data from an offset on.
func opener(data []byte) func(int64) (io.ReadCloser, error) {
	return func(offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[offset:])), nil
	}
}

func (b *bench) push(t *testing.T, repo string, data []byte) oci.Descriptor {
	t.Helper()
	d := descriptor(data)
	if err := b.PushBlob(t.Context(), repo, d, opener(data), nil); err != nil {
		t.Fatal(err)
	}
	return d
}

func (b *bench) pull(t *testing.T, repo string, d oci.Descriptor) ([]byte, error) {
	t.Helper()
	r, err := b.Blob(t.Context(), repo, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// wantPull fails unless the blob arrives whole.
func (b *bench) wantPull(t *testing.T, repo string, data []byte) {
	t.Helper()
	got, err := b.pull(t, repo, descriptor(data))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes that differ from the %d wanted", len(got), len(data))
	}
}

// image is a manifest of one config and one layer.
func image(config, layer []byte) []byte {
	m := oci.Manifest{MediaType: oci.MediaTypeManifest, Config: descriptor(config), Layers: []oci.Descriptor{descriptor(layer)}}
	m.SchemaVersion = 2
	m.Config.MediaType = oci.MediaTypeConfig
	out, _ := json.Marshal(m)
	return out
}

// connectProxy is an http proxy that takes every connection to backend, so
// that a test can have a registry of any name.
func connectProxy(t *testing.T, backend func(host string) string) func(*http.Request) (*url.URL, error) {
	t.Helper()
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		far, err := net.Dial("tcp", backend(r.Host))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		near, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			far.Close()
			return
		}
		_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(far, buffered)
			far.Close()
		}()
		_, _ = io.Copy(near, far)
		near.Close()
	}))
	return func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: addr}, nil }
}
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
