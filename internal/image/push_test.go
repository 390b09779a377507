package image

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"den/internal/oci"
)

func TestPulledImageIsPushedAsItCame(t *testing.T) {
	b := newBench(t)
	want := b.reg.put(t, "app:1", twoLayers(t, "amd64"))
	must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	if err := b.Tag(t.Context(), b.name("app:1"), b.name("other/copy:2")); err != nil {
		t.Fatal(err)
	}
	got := must(b.Push(t.Context(), b.name("other/copy:2"), PushOptions{}))(t)
	if got.Digest != want {
		t.Errorf("pushed %s, pulled %s", got.Digest, want)
	}
	if raw := b.reg.get(t, "/v2/other/copy/manifests/2"); digest.FromBytes(raw) != want {
		t.Error("the registry has another manifest")
	}
}

// mountable lets the registry forget what other repositories have, so that
// blobs have to be mounted or uploaded, and lists where they were mounted from.
func (s *server) mountable() (from func() []string) {
	var list []string
	there := map[string]bool{} // "repository digest"
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = func(w http.ResponseWriter, r *http.Request) bool {
		repo, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
		s.mu.Lock()
		defer s.mu.Unlock()
		switch mount := r.URL.Query().Get("mount"); {
		case r.Method == "PUT" && strings.HasPrefix(rest, "uploads/"):
			there[repo+" "+r.URL.Query().Get("digest")] = true
		case r.Method == "HEAD" && rest != "" && !there[repo+" "+rest]:
			w.WriteHeader(http.StatusNotFound)
			return true
		case r.Method == "POST" && mount != "":
			list = append(list, r.URL.Query().Get("from"))
			there[repo+" "+mount] = true
			w.Header().Set("Location", "/v2/"+repo+"/blobs/"+mount)
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	}
	return func() []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		out := list
		list = nil
		return out
	}
}

func TestLayersAreMountedAcrossRepositories(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "app:1", twoLayers(t, "amd64"))
	must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{}))(t) // no layer is here
	if err := b.Tag(t.Context(), b.name("app:1"), b.name("copy:1")); err != nil {
		t.Fatal(err)
	}
	mounts := b.reg.mountable()
	b.reg.forget()
	must(b.Push(t.Context(), b.name("copy:1"), PushOptions{}))(t)
	if diff := cmp.Diff([]string{"app", "app"}, mounts()); diff != "" {
		t.Error(diff)
	}
	if n := b.reg.count("GET", "/v2/app/blobs/"); n != 0 {
		t.Errorf("%d layers were fetched to be pushed", n)
	}
	must(b.Push(t.Context(), b.name("copy:1"), PushOptions{}))(t)
	if again := mounts(); len(again) != 0 {
		t.Errorf("what is there was mounted again: %v", again)
	}
}

func TestFirstPushMountsTheBaseThatIsHere(t *testing.T) {
	b, elsewhere := newBench(t), newServer(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"))
	base := must(b.Pull(t.Context(), b.name("base:1"), PullOptions{}))(t)
	img := b.buildOn(base.Image, "app", "hello")
	blobs := must(b.Blobs(t.Context(), []*Image{img}, Format{}))(t)
	defer blobs.Close()
	mounts := b.reg.mountable()
	b.reg.forget()
	push := func(names ...string) {
		t.Helper()
		if err := b.PushBlobs(t.Context(), blobs, names, PushOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	push(b.name("app:1"), b.name("app:2"))
	if diff := cmp.Diff([]string{"base", "base"}, mounts()); diff != "" {
		t.Error(diff)
	}
	if n := b.reg.count("PUT", "/v2/app/blobs/uploads/"); n != 2 {
		t.Errorf("%d blobs went up, want the new layer and the configuration", n)
	}
	// Another registry in between does not make this one's be forgotten.
	push(elsewhere.host+"/app:1", b.name("second:1"))
	if n := len(mounts()); n != 3 {
		t.Errorf("%d layers were mounted, want all", n)
	}
	if n := b.reg.count("PUT", "/v2/second/blobs/uploads/"); n != 1 {
		t.Errorf("%d blobs went up to the second repository, want the configuration", n)
	}
}

func TestConcurrentPushesSendALayerOnce(t *testing.T) {
	b := newBench(t)
	img := b.buildOn(nil, "big", noise(4<<20))
	must(b.Commit(t.Context(), Built{Names: []string{b.name("app:1")}, Images: []*Image{img}}))(t)
	blobs := must(b.Blobs(t.Context(), []*Image{img}, Format{}))(t)
	defer blobs.Close()
	layer := blobs.Images[0].Layers[0].Blob
	if layer.Size < resumeBytes {
		t.Fatalf("a layer of %d bytes is not waited for", layer.Size)
	}
	var mu sync.Mutex
	uploads := 0
	b.reg.hook = func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == "PUT" && r.URL.Query().Get("digest") == string(layer.Digest) {
			uploads++
		}
		return false
	}
	g, ctx := errgroup.WithContext(t.Context())
	for range 5 {
		other := newBenchAt(t, b.reg, b.root, Options{}) // as another process
		g.Go(func() error { return other.PushBlobs(ctx, blobs, []string{b.name("app:1")}, PushOptions{}) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if uploads != 1 {
		t.Errorf("the layer went up %d times", uploads)
	}
}

func TestMultiPlatformImageIsPushedAsItsIndex(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "app:1", twoLayers(t, "amd64"), twoLayers(t, "arm64"))
	must(b.Pull(t.Context(), b.name("app:1"), PullOptions{AllPlatforms: true}))(t)
	if err := b.Tag(t.Context(), b.name("app:1"), b.name("copy:1")); err != nil {
		t.Fatal(err)
	}
	got := must(b.Push(t.Context(), b.name("copy:1"), PushOptions{}))(t)
	index := must(oci.ParseIndex(b.reg.get(t, "/v2/copy/manifests/1"), ""))(t)
	if !oci.IsIndex(got.MediaType) || len(index.Manifests) != 2 {
		t.Errorf("pushed %v with %d manifests", got, len(index.Manifests))
	}
}

// buildOn assembles an image with one layer on top of base.
func (b *bench) buildOn(base *Image, files ...string) *Image {
	b.t.Helper()
	r := Result{}
	if base != nil {
		r.Config, r.Base, r.Layers = base.Config, base.Config, append(r.Layers, base.Layers...)
	}
	for i := 0; i+1 < len(files); i += 2 {
		r.Layers = append(r.Layers, b.built(regular(files[i], files[i+1])))
	}
	img, err := Assemble(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return img
}

func TestBuiltImageGetsItsBlobsOnce(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"))
	base := must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{}))(t)
	img := b.buildOn(base, "app", "hello")
	must(b.Commit(t.Context(), Built{Names: []string{b.name("app:1")}, Images: []*Image{img}}))(t)
	if _, ok := b.madeOf(t.Context(), img.Layers[2].DiffID); ok {
		t.Error("a tag made a blob")
	}
	first := must(b.Push(t.Context(), b.name("app:1"), PushOptions{}))(t)
	named := must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{Mode: ResolveLocal}))(t)
	if named.Manifest == nil || named.Manifest.Digest != first.Digest || named.Layers[2].Blob == nil {
		t.Errorf("the name does not know its manifest: %+v", named.Manifest)
	}
	b.reg.forget()
	second := must(b.Push(t.Context(), b.name("app:1"), PushOptions{}))(t)
	if second.Digest != first.Digest || b.reg.count("PATCH", "/blobs/")+b.reg.count("PUT", "/blobs/") != 0 {
		t.Errorf("second push: %s after %v", second.Digest, b.reg.log)
	}
	// The base's blobs are those of its registry, and another store takes it all.
	other := newBenchAt(t, b.reg, t.TempDir(), Options{})
	p := must(other.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	if p.Layers[0].Blob.Digest != base.Layers[0].Blob.Digest {
		t.Error("the base was compressed again")
	}
	if diff := cmp.Diff(map[string]string{"etc/name": "two", "arch": "amd64", "app": "hello"}, other.files(p.Layers)); diff != "" {
		t.Error(diff)
	}
}

func TestCompressionAndMediaTypesAreAsAsked(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"))
	base := must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{}))(t)
	img := b.buildOn(base, "app", "hello")
	tests := []struct {
		name   string
		format Format
		want   []string
	}{
		{"zstd for what is new", Format{Compression: "zstd"}, []string{oci.MediaTypeLayerGzip, oci.MediaTypeLayerGzip, oci.MediaTypeLayerZstd}},
		{"zstd for all", Format{Compression: "zstd", Force: true}, []string{oci.MediaTypeLayerZstd, oci.MediaTypeLayerZstd, oci.MediaTypeLayerZstd}},
		{"plain", Format{Compression: "uncompressed"}, []string{oci.MediaTypeLayerGzip, oci.MediaTypeLayerGzip, oci.MediaTypeLayer}},
		{"docker", Format{DockerTypes: true, Level: 1}, []string{oci.MediaTypeDockerLayerGzip, oci.MediaTypeDockerLayerGzip, oci.MediaTypeDockerLayerGzip}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			blobs := must(b.Blobs(t.Context(), []*Image{img}, tt.format))(t)
			defer blobs.Close()
			if err := b.PushBlobs(t.Context(), blobs, []string{b.name("out:1")}, PushOptions{}); err != nil {
				t.Fatal(err)
			}
			m := must(oci.ParseManifest(b.reg.get(t, "/v2/out/manifests/1"), ""))(t)
			var got []string
			for _, l := range m.Layers {
				got = append(got, l.MediaType)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			other := newBenchAt(t, b.reg, t.TempDir(), Options{})
			p := must(other.Pull(t.Context(), b.name("out:1"), PullOptions{}))(t)
			if got := other.files(p.Layers)["app"]; got != "hello" {
				t.Errorf("app is %q", got)
			}
		})
	}
	if _, err := b.Blobs(t.Context(), []*Image{img}, Format{Compression: "lzma"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("lzma: %v", err)
	}
}

func TestBuiltIndexNamesItsPlatforms(t *testing.T) {
	b := newBench(t)
	var images []*Image
	for _, arch := range []string{"amd64", "arm64"} {
		config := []byte(`{"os":"linux","architecture":"` + arch + `","config":{}}`)
		images = append(images, must(Assemble(Result{Config: config, Layers: []Layer{b.built(regular("arch", arch))}}))(t))
	}
	blobs := must(b.Blobs(t.Context(), images, Format{Annotations: map[string]string{"a": "b"}}))(t)
	defer blobs.Close()
	if err := b.PushBlobs(t.Context(), blobs, []string{b.name("multi:1")}, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	must(b.Commit(t.Context(), Built{Names: []string{b.name("multi:1")}, Images: blobs.Images}))(t)
	index := must(oci.ParseIndex(b.reg.get(t, "/v2/multi/manifests/1"), ""))(t)
	if len(index.Manifests) != 2 || index.Manifests[1].Platform.Architecture != "arm64" || index.Annotations["a"] != "b" {
		t.Errorf("index is %+v", index)
	}
	arm := oci.Platform{OS: "linux", Architecture: "arm64"}
	img := must(b.Resolve(t.Context(), b.name("multi:1"), ResolveOptions{Mode: ResolveLocal, Platform: &arm}))(t)
	if img.ConfigDigest != images[1].ConfigDigest {
		t.Error("the wrong platform was chosen")
	}
}

func TestLostBlobIsMadeAgainFromTheTree(t *testing.T) {
	b := newBench(t)
	img := b.buildOn(nil, "app", "hello")
	must(b.Commit(t.Context(), Built{Names: []string{b.name("app:1")}, Images: []*Image{img}}))(t)
	first := must(b.Push(t.Context(), b.name("app:1"), PushOptions{}))(t)
	blobs := filepath.Join(b.root, "blobs", "sha256")
	names, err := os.ReadDir(blobs)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := os.Remove(filepath.Join(blobs, n.Name())); err != nil {
			t.Fatal(err)
		}
	}
	b.Images = New(b.st, b.Images.reg, b.o)
	offline := New(b.st, nil, b.o)
	again := must(offline.Blobs(t.Context(), []*Image{img}, Format{}))(t)
	defer again.Close()
	if again.Target.Digest != first.Digest {
		t.Errorf("made %s, it was %s", again.Target.Digest, first.Digest)
	}
}

func TestPushOfAnUnknownNameSaysSo(t *testing.T) {
	b := newBench(t)
	_, err := b.Push(t.Context(), b.name("nothing:1"), PushOptions{})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "does not exist locally") {
		t.Errorf("got %v", err)
	}
}

func TestRewriteGivesTheSameManifestInTwoStores(t *testing.T) {
	epoch := day.Add(time.Hour)
	s := newServer(t)
	s.put(t, "base:1", twoLayers(t, "amd64"))
	var digests []oci.Digest
	for range 2 {
		b := newBenchAt(t, s, t.TempDir(), Options{})
		base := must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{}))(t)
		now := time.Now()
		top := regular("app", "hello")
		top.ModTime = now
		l := b.built(top)
		l.Created = &now
		r := Result{Config: base.Config, Base: base.Config, Layers: append(append([]Layer{}, base.Layers...), l), Epoch: &epoch}
		r, held, err := b.Rewrite(t.Context(), r, Rewriting{Epoch: &epoch}, Format{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Layers[0].DiffID != base.Layers[0].DiffID || r.Layers[2].DiffID == l.DiffID {
			t.Error("the wrong layers were rewritten")
		}
		img := must(Assemble(r))(t)
		blobs := must(b.Blobs(t.Context(), []*Image{img}, Format{}))(t)
		digests = append(digests, blobs.Target.Digest)
		must(b.Commit(t.Context(), Built{Names: []string{"app"}, Images: blobs.Images}))(t)
		if err := blobs.Close(); err != nil {
			t.Error(err)
		}
		if err := held.Close(); err != nil {
			t.Error(err)
		}
		if got := b.files(img.Layers)["app"]; got != "hello" {
			t.Errorf("app is %q", got)
		}
		c := must(img.Parse())(t)
		if last := c.History[len(c.History)-1]; !last.Created.Equal(epoch) {
			t.Errorf("history ends at %s", last.Created)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("two stores made %v", digests)
	}
}
