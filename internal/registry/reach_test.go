package registry_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"den/internal/registry"
)

func reachClient(t *testing.T, o registry.Options) *registry.Client {
	t.Helper()
	if o.Env == nil {
		o.Env = func(string) string { return "" }
	}
	if o.DaemonJSON == "" {
		o.DaemonJSON = filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(o.DaemonJSON, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReachAsksOnceAndWithoutACredential(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		err    string
	}{
		"open":        {200, ""},
		"closed":      {401, ""},
		"forbidden":   {403, ""},
		"no registry": {404, "no registry"},
		"ill":         {503, "answers 503"},
	} {
		t.Run(name, func(t *testing.T) {
			var heads int
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" || r.URL.Path != "/v2/" {
					t.Errorf("%s %s with %q", r.Method, r.URL, r.Header.Get("Authorization"))
				}
				if r.Method == http.MethodHead {
					heads++
				}
				w.Header().Set("Date", "Mon, 02 Jan 2006 15:04:05 GMT")
				w.WriteHeader(c.status)
			}))
			defer s.Close()
			p, err := registry.NamedPlace(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			got := reachClient(t, registry.Options{}).Reach(t.Context(), p)
			if (got.Err == nil) != (c.err == "") || got.Err != nil && !strings.Contains(got.Err.Error(), c.err) {
				t.Errorf("%v, want %q", got.Err, c.err)
			}
			if heads != 1 || !got.Date.Equal(time.Date(2006, 1, 2, 15, 4, 5, 0, time.UTC)) || got.At.IsZero() {
				t.Errorf("%d requests, %+v", heads, got)
			}
		})
	}
}

func TestReachEndsWithItsContext(t *testing.T) {
	stop := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stop }))
	defer s.Close()
	defer close(stop)
	p, err := registry.NamedPlace(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got := reachClient(t, registry.Options{}).Reach(ctx, p); got.Err == nil {
		t.Errorf("%+v", got)
	}
}

// Nobody is asked whom nobody named.
func TestPlacesAreThoseOfTheConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(file, []byte(`{"registry-mirrors":["https://m3:5000"],"insecure-registries":["r1:5000","10.0.0.0/8","m1:5000"]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c := reachClient(t, registry.Options{
		Mirrors: []string{"m1:5000", "quay.io=https://m2/q"}, DaemonJSON: file,
		Env: func(name string) string { return map[string]string{"DEN_MIRROR": "m1:5000,m4"}[name] },
	})
	want := []registry.Place{
		{Host: "m1:5000", As: "mirror of docker.io"}, {Scheme: "https", Host: "m2", As: "mirror of quay.io"}, {Host: "m4", As: "mirror of docker.io"},
		{Scheme: "https", Host: "m3:5000", As: "mirror of docker.io"}, {Host: "r1:5000", As: "insecure registry"},
	}
	if d := cmp.Diff(want, c.Places()); d != "" {
		t.Error(d)
	}
	if got := reachClient(t, registry.Options{}).Places(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestNamedPlaces(t *testing.T) {
	for s, want := range map[string]registry.Place{
		"docker.io":                    {Host: "registry-1.docker.io", As: "registry"},
		"ghcr.io/a/b":                  {Host: "ghcr.io", As: "registry"},
		"http://localhost:5000/":       {Scheme: "http", Host: "localhost:5000", As: "registry"},
		"https://registry.example.com": {Scheme: "https", Host: "registry.example.com", As: "registry"},
	} {
		if got, err := registry.NamedPlace(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"ftp://x", "a b", "x@y:1", ".."} {
		if got, err := registry.NamedPlace(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
}
