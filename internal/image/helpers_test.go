package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/registry"
	"den/internal/store"
	"den/internal/store/storetest"
)

// bench is a store with a registry beside it.
type bench struct {
	*Images
	t    testing.TB
	st   *store.Store
	root string
	reg  *server
}

// server is an in-process registry that counts what is asked of it.
type server struct {
	host string
	mu   sync.Mutex
	log  []string
	// hook may answer a request itself.
	hook func(http.ResponseWriter, *http.Request) bool
}

func (s *server) ServeHTTP(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.log = append(s.log, r.Method+" "+r.URL.Path)
		hook := s.hook
		s.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		next.ServeHTTP(w, r)
	})
}

// count counts requests since the last call of forget.
func (s *server) count(method, part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, line := range s.log {
		if m, path, _ := strings.Cut(line, " "); m == method && strings.Contains(path, part) {
			n++
		}
	}
	return n
}

func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{}
	h := httptest.NewServer(s.ServeHTTP(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

func newBench(t testing.TB) *bench { return newBenchAt(t, newServer(t), t.TempDir(), Options{}) }

// newBenchAt opens the store in root as one more engine.
func newBenchAt(t testing.TB, s *server, root string, o Options) *bench {
	t.Helper()
	st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), Image: storetest.Images(), Durability: "none"})
	if err != nil {
		t.Skipf("needs a local file system that can hold a store: %v", err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	home := t.TempDir()
	reg, err := registry.New(registry.Options{
		DaemonJSON: write(t, home, "daemon.json", "{}"),
		Env:        func(name string) string { return map[string]string{"HOME": home}[name] },
		Sleep:      func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	})
	if err != nil {
		t.Fatal(err)
	}
	if o.Platform.OS == "" {
		o.Platform = oci.Platform{OS: "linux", Architecture: "amd64"}
	}
	return &bench{Images: New(st, reg, o), t: t, st: st, root: root, reg: s}
}

func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func (b *bench) name(s string) string { return b.reg.host + "/" + s }

// member of a tar for a test.
type tarMember struct {
	name, body, link string
	kind             byte
	mode             int64
}

var day = time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)

// makeTar writes a tar as some other tool would: in the given order, owned by
// who runs the test.
func makeTar(t testing.TB, members ...tarMember) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{
			Name: m.name, Linkname: m.link, Typeflag: m.kind, Mode: m.mode, Size: int64(len(m.body)),
			ModTime: day, Uid: os.Getuid(), Gid: os.Getgid(),
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// foreign is an image as another tool makes it.
type foreign struct {
	config   []byte
	tars     [][]byte
	blobs    [][]byte // the tars, gzipped
	manifest []byte
	platform oci.Platform
}

func newForeign(t testing.TB, platform string, tars ...[]byte) *foreign {
	t.Helper()
	f := &foreign{tars: tars, platform: oci.Platform{OS: "linux", Architecture: platform}}
	config := ocispec.Image{Platform: f.platform, Created: &day, Author: "somebody"}
	config.Config.Env = []string{"PATH=/bin"}
	config.Config.Labels = map[string]string{"vendor": "test"}
	config.RootFS.Type = "layers"
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	for i, raw := range tars {
		blob := gzipped(t, raw)
		f.blobs = append(f.blobs, blob)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(raw))
		at := day.Add(time.Duration(i) * time.Hour)
		config.History = append(config.History, ocispec.History{Created: &at, CreatedBy: "ADD layer"})
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob)),
		})
	}
	config.History = append(config.History, ocispec.History{Created: &day, CreatedBy: "CMD sh", EmptyLayer: true})
	f.config = marshal(t, config)
	manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(f.config), Size: int64(len(f.config))}
	f.manifest = marshal(t, manifest)
	return f
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (f *foreign) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(f.manifest), Size: int64(len(f.manifest)), Platform: &f.platform,
	}
}

// put uploads images to the registry without den: an index if there are
// several. It returns the digest of what the name stands for.
func (s *server) put(t testing.TB, name string, images ...*foreign) oci.Digest {
	t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for _, f := range images {
		for _, b := range append(f.blobs, f.config) {
			s.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(digest.FromBytes(b)), "application/octet-stream", b)
		}
		s.do(t, "PUT", "/v2/"+repo+"/manifests/"+string(digest.FromBytes(f.manifest)), ocispec.MediaTypeImageManifest, f.manifest)
		index.Manifests = append(index.Manifests, f.descriptor())
	}
	raw, mediaType := images[0].manifest, ocispec.MediaTypeImageManifest
	if len(images) > 1 {
		about := []byte(`{"schemaVersion":2}`)
		s.do(t, "PUT", "/v2/"+repo+"/manifests/"+string(digest.FromBytes(about)), ocispec.MediaTypeImageManifest, about)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(about), Size: int64(len(about)),
			Platform:    &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{attestationType: "attestation-manifest"},
		})
		raw, mediaType = marshal(t, index), ocispec.MediaTypeImageIndex
	}
	s.do(t, "PUT", "/v2/"+repo+"/manifests/"+tag, mediaType, raw)
	return digest.FromBytes(raw)
}

func (s *server) do(t testing.TB, method, path, contentType string, body []byte) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.host+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		out, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, out)
	}
}

// get reads from the registry without den.
func (s *server) get(t testing.TB, path string) []byte {
	t.Helper()
	req, err := http.NewRequest("GET", "http://"+s.host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("GET %s: %s: %v", path, resp.Status, err)
	}
	return out
}

// files lists a stack's regular files with their content.
func (b *bench) files(layers []Layer) map[string]string {
	b.t.Helper()
	trees, err := b.Trees(b.t.Context(), layers, TreeOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer closeTrees(trees)
	out := map[string]string{}
	for f, err := range Flatten(trees) {
		if err != nil {
			b.t.Fatal(err)
		}
		if f.Open == nil || f.Hardlink {
			continue
		}
		r, err := f.Open()
		if err != nil {
			b.t.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		if err := release(err, r); err != nil {
			b.t.Fatal(err)
		}
		out[f.Path] = string(raw)
	}
	return out
}

// built makes a layer as a build step would: a tree without a blob.
func (b *bench) built(files ...layer.File) Layer {
	b.t.Helper()
	d, err := b.st.NewDraft(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	defer d.Close()
	a, err := layer.Build(b.t.Context(), d.FS(), func(yield func(layer.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}, layer.UnpackOptions{Image: b.st.ImageForm()})
	if err != nil {
		b.t.Fatal(err)
	}
	l, err := d.Publish(b.t.Context(), metaOf(a))
	if err != nil {
		b.t.Fatal(err)
	}
	defer l.Close()
	at := day.Add(24 * time.Hour)
	return Layer{DiffID: a.DiffID, SizeBytes: a.SizeBytes, Created: &at}
}

// regular is a file of a build step.
func regular(path, body string) layer.File {
	return layer.File{
		Entry: oci.Entry{
			Path: path, Mode: 0o100644, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
			Size: int64(len(body)), ModTime: day.Add(24 * time.Hour),
		},
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil },
	}
}

// record collects statuses.
type record struct {
	mu   sync.Mutex
	last map[string]progress.Status
	all  []progress.Status
}

func (r *record) Event(e progress.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]progress.Status{}
	}
	if e.Status != nil {
		r.last[e.Status.ID] = *e.Status
		r.all = append(r.all, *e.Status)
	}
}

// clean fails the test if the store holds half-done work.
func (b *bench) clean() {
	b.t.Helper()
	for _, dir := range []string{"tmp", "ingest"} {
		names, err := os.ReadDir(filepath.Join(b.root, dir))
		if err != nil && !os.IsNotExist(err) {
			b.t.Fatal(err)
		}
		for _, n := range names {
			b.t.Errorf("store keeps %s/%s", dir, n.Name())
		}
	}
}

// must is for results that a test cannot do without: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// golden compares JSON or text with a file in testdata; DEN_GOLDEN=1 writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	var indented bytes.Buffer
	if json.Indent(&indented, got, "", "  ") == nil {
		got = append(indented.Bytes(), '\n')
	}
	file := filepath.Join("testdata", name)
	if os.Getenv("DEN_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (DEN_GOLDEN=1 writes it anew):\n%s", name, got)
	}
}
