package image

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/registry"
)

// A trick is what a hostile registry answers; false is the honest answer.
type trick func(w http.ResponseWriter, r *http.Request, f *foreign) bool

// withBlobs answers requests for the first layer.
func withBlobs(do func(w http.ResponseWriter, r *http.Request, blob []byte)) trick {
	return func(w http.ResponseWriter, r *http.Request, f *foreign) bool {
		if r.Method != "GET" || !strings.HasSuffix(r.URL.Path, string(digest.FromBytes(f.blobs[0]))) {
			return false
		}
		do(w, r, f.blobs[0])
		return true
	}
}

// withManifest gives a manifest in place of the tag's.
func withManifest(mediaType string, body func(f *foreign) []byte) trick {
	return func(w http.ResponseWriter, r *http.Request, f *foreign) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		raw := body(f)
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
		if r.Method == "GET" {
			_, _ = w.Write(raw)
		}
		return true
	}
}

// manifestOf is f's manifest, changed.
func manifestOf(t *testing.T, f *foreign, change func(*oci.Manifest)) []byte {
	m := *must(oci.ParseManifest(f.manifest, ""))(t)
	change(&m)
	return marshal(t, m)
}

// layers is a manifest's list of n layers, as short as it gets.
func layers(n int) string {
	one := `{"mediaType":"` + oci.MediaTypeLayerGzip + `","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}`
	config := strings.Replace(one, oci.MediaTypeLayerGzip, oci.MediaTypeConfig, 1)
	return `{"schemaVersion":2,"mediaType":"` + oci.MediaTypeManifest + `","config":` + config + `,"layers":[` + strings.Repeat(one+",", n-1) + one + "]}"
}

// endless sends until nobody listens.
func endless(w http.ResponseWriter) {
	for {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			return
		}
	}
}

// silent is what is said of a connection without data.
const silent = "no data for"

func TestHostileRegistriesAreToldAndLeaveNothing(t *testing.T) {
	index := func(child string) []byte {
		return []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[{"mediaType":"` + oci.MediaTypeIndex +
			`","digest":"` + child + `","size":100,"platform":{"os":"linux","architecture":"amd64"}}]}`)
	}
	inner := index("sha256:" + strings.Repeat("1", 64))
	tests := []struct {
		name  string
		trick trick
		want  string
	}{
		{"blob that stalls", withBlobs(func(w http.ResponseWriter, r *http.Request, blob []byte) {
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write(blob[:len(blob)/2])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}), silent},
		{"registry that stalls", func(_ http.ResponseWriter, r *http.Request, _ *foreign) bool {
			<-r.Context().Done()
			return true
		}, silent},
		{"redirects in a circle", withBlobs(func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, r.URL.Path+"?again", http.StatusTemporaryRedirect)
		}), "more than 10 redirects"},
		{"blob shorter than said", withBlobs(func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			_, _ = w.Write(blob[:10])
		}), "sends 10 bytes"},
		{"blob longer than said", withBlobs(func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			_, _ = w.Write(append(bytes.Clone(blob), "more"...))
		}), "the descriptor says"},
		{"length that is a lie", withBlobs(func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			_, _ = w.Write(blob[:10]) // and the connection ends
		}), "unexpected EOF"},
		{"blob without an end", withBlobs(func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			endless(w)
		}), ""},
		{"another blob", withBlobs(func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			_, _ = w.Write(bytes.Repeat([]byte{0x1f}, len(blob)))
		}), "sha256:"},
		{"blob after the right start", withBlobs(func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			bad := bytes.Clone(blob)
			bad[len(bad)-1] ^= 1
			_, _ = w.Write(bad)
		}), "sha256:"},
		{"manifest without an end", func(w http.ResponseWriter, r *http.Request, _ *foreign) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", oci.MediaTypeManifest)
			endless(w)
			return true
		}, "more than 4194304 bytes"},
		{"a million layers", withManifest(oci.MediaTypeManifest, func(*foreign) []byte { return []byte(layers(1e6)) }), "more than 4194304 bytes"},
		{"as many layers as fit", withManifest(oci.MediaTypeManifest, func(*foreign) []byte { return []byte(layers(20_000)) }), "layers"},
		{"more layers than can be mounted", withManifest(oci.MediaTypeManifest, func(*foreign) []byte { return []byte(layers(501)) }), "501 layers"},
		{"deep manifest", withManifest(oci.MediaTypeManifest, func(*foreign) []byte {
			return []byte(`{"schemaVersion":2,"x":` + strings.Repeat("[", 1e6) + strings.Repeat("]", 1e6) + `}`)
		}), "manifest"},
		{"index in an index", func(w http.ResponseWriter, r *http.Request, f *foreign) bool {
			raw := index(string(digest.FromBytes(inner)))
			if strings.Contains(r.URL.Path, "sha256:") {
				raw = inner
			}
			return withManifest(oci.MediaTypeIndex, func(*foreign) []byte { return raw })(w, r, f)
		}, "other indexes only"},
		{"index that names itself", withManifest(oci.MediaTypeIndex, func(*foreign) []byte {
			return index("sha256:" + strings.Repeat("1", 64))
		}), "other indexes only"},
		{"huge configuration", withManifest(oci.MediaTypeManifest, func(f *foreign) []byte {
			return manifestOf(t, f, func(m *oci.Manifest) { m.Config.Size = 1 << 40 })
		}), "config of 1099511627776 bytes"},
		{"configuration of another length", withManifest(oci.MediaTypeManifest, func(f *foreign) []byte {
			return manifestOf(t, f, func(m *oci.Manifest) { m.Config.Size++ })
		}), "the descriptor says"},
		{"layer of a negative length", withManifest(oci.MediaTypeManifest, func(f *foreign) []byte {
			return manifestOf(t, f, func(m *oci.Manifest) { m.Layers[0].Size = -1 })
		}), "size"},
		{"digest that is a path", withManifest(oci.MediaTypeManifest, func(f *foreign) []byte {
			return manifestOf(t, f, func(m *oci.Manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" })
		}), "digest"},
		{"busy for a year", func(w http.ResponseWriter, _ *http.Request, _ *foreign) bool {
			w.Header().Set("Retry-After", "31536000")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, "retry after 8760h"},
		{"busy beyond numbers", func(w http.ResponseWriter, _ *http.Request, _ *foreign) bool {
			w.Header().Set("Retry-After", "99999999999999999999999")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, "too many requests"},
		{"token that is never enough", func(w http.ResponseWriter, r *http.Request, _ *foreign) bool {
			if r.URL.Path == "/token" {
				fmt.Fprint(w, `{"token":"never"}`)
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, "unauthorized"},
		{"token service that asks for a token", func(w http.ResponseWriter, r *http.Request, _ *foreign) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, "unauthorized"},
		{"token service that redirects in a circle", func(w http.ResponseWriter, r *http.Request, _ *foreign) bool {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, "token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			f := newForeign(t, "amd64", makeTar(t, tarMember{name: "big", body: noise(200_000)}))
			b.reg.put(t, "app:1", f)
			requests := 0
			b.reg.hook = func(w http.ResponseWriter, r *http.Request) bool {
				b.reg.mu.Lock()
				requests++
				b.reg.mu.Unlock()
				return tt.trick(w, r, f)
			}
			patience := time.Minute
			if tt.want == silent {
				patience = 500 * time.Millisecond
			}
			_, err := b.patient(patience).Pull(t.Context(), b.name("app:1"), PullOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("got %.2500v, want %q", err, tt.want)
			}
			b.reg.mu.Lock()
			b.reg.hook = nil
			n := requests
			b.reg.mu.Unlock()
			if n > 60 {
				t.Errorf("%d requests", n)
			}
			b.holdsNothing(f)
			// What is left over, if anything, does not stand in the way of the truth.
			p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
			if d := cmp.Diff(map[string]string{"big": noise(200_000)}, b.files(p.Layers)); d != "" {
				t.Errorf("the next pull made another tree: %d bytes of differences", len(d))
			}
			b.clean()
		})
	}
}

// patient is the same engine in another process, which bears so much silence.
func (b *bench) patient(silence time.Duration) *Images {
	b.t.Helper()
	home := b.t.TempDir()
	reg, err := registry.New(registry.Options{
		DaemonJSON: write(b.t, home, "daemon.json", "{}"), StallTimeout: silence, Tries: 3,
		Env:   func(name string) string { return map[string]string{"HOME": home}[name] },
		Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return New(b.st, reg, b.o)
}

// holdsNothing checks that neither a name nor an object of f is there, and no
// file but the beginnings of downloads.
func (b *bench) holdsNothing(f *foreign) {
	b.t.Helper()
	if list := must(b.List(b.t.Context(), nil))(b.t); len(list) != 0 {
		b.t.Errorf("%d images have a name", len(list))
	}
	for i := range f.tars {
		if _, err := b.st.Layer(b.t.Context(), digest.FromBytes(f.tars[i])); !errdefs.IsNotFound(err) {
			b.t.Errorf("layer %d is visible: %v", i, err)
		}
		if _, err := b.st.Blob(b.t.Context(), digest.FromBytes(f.blobs[i])); !errdefs.IsNotFound(err) {
			b.t.Errorf("blob %d is visible: %v", i, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(b.root, "tmp"))
	if err != nil && !os.IsNotExist(err) || len(left) > 0 {
		b.t.Errorf("temporary files: %v, %v", left, err)
	}
	parts, err := os.ReadDir(filepath.Join(b.root, "ingest"))
	if err != nil && !os.IsNotExist(err) {
		b.t.Error(err)
	}
	for _, p := range parts {
		if fi, err := p.Info(); err != nil || fi.Size() == 0 {
			b.t.Errorf("ingest/%s is kept without a byte: %v", p.Name(), err)
		}
	}
	report, err := b.st.Verify(b.t.Context(), true)
	if err != nil || len(report.Problems) > 0 {
		b.t.Errorf("the store is damaged: %+v, %v", report, err)
	}
}
