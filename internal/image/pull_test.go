package image

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

func twoLayers(t *testing.T, arch string) *foreign {
	return newForeign(t, arch,
		makeTar(t,
			tarMember{name: "etc/", kind: '5'}, tarMember{name: "etc/name", body: "one"},
			tarMember{name: "gone", body: "x"}, tarMember{name: "arch", body: arch}),
		makeTar(t,
			tarMember{name: ".wh.gone"}, tarMember{name: "etc/", kind: '5'}, tarMember{name: "etc/name", body: "two"},
			tarMember{name: "etc/link", kind: '2', link: "name"}))
}

func TestPullUnpacksAndSaysWhatItDid(t *testing.T) {
	b := newBench(t)
	f := twoLayers(t, "amd64")
	want := b.reg.put(t, "app:1", f)
	seen := &record{}
	p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{Sink: seen}))(t)
	if p.Digest != want || p.UpToDate {
		t.Errorf("pulled %s, up to date %t", p.Digest, p.UpToDate)
	}
	if got := p.Status(); got != "Downloaded newer image for "+b.name("app:1") {
		t.Error(got)
	}
	if diff := cmp.Diff(map[string]string{"etc/name": "two", "arch": "amd64"}, b.files(p.Layers)); diff != "" {
		t.Error(diff)
	}
	if len(seen.last) != 2 {
		t.Errorf("statuses for %d layers", len(seen.last))
	}
	for id, s := range seen.last {
		if s.Completed == nil || s.Name != "Pull complete" {
			t.Errorf("%s ended as %q", id, s.Name)
		}
	}
	b.reg.forget()
	again := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	if !again.UpToDate || b.reg.count("GET", "/") > 1 { // ggcr's /v2/ at most
		t.Errorf("second pull: up to date %t, %d requests: %v", again.UpToDate, b.reg.count("GET", "/"), b.reg.log)
	}
	b.clean()
}

func TestPulledNameIsSharedByEngines(t *testing.T) {
	a := newBench(t)
	a.reg.put(t, "app:1", twoLayers(t, "amd64"))
	p := must(a.Pull(t.Context(), a.name("app:1"), PullOptions{}))(t)
	other := newBenchAt(t, a.reg, a.root, Options{})
	a.reg.forget()
	img := must(other.Resolve(t.Context(), a.name("app:1"), ResolveOptions{}))(t)
	if img.ConfigDigest != p.ConfigDigest || len(a.reg.log) != 0 {
		t.Errorf("other engine found %s after %v", img.ConfigDigest, a.reg.log)
	}
	if err := other.Tag(t.Context(), a.name("app:1"), "mine"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Resolve(t.Context(), "mine", ResolveOptions{Mode: ResolveLocal}); !errdefs.IsNotFound(err) {
		t.Errorf("the other engine's tag is seen: %v", err)
	}
}

func TestResolveFetchesNoLayer(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "app:1", twoLayers(t, "arm64"), twoLayers(t, "amd64"))
	b.reg.forget()
	img := must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{}))(t)
	if img.Platform.Architecture != "amd64" {
		t.Errorf("chose %v", img.Platform)
	}
	if n := b.reg.count("GET", "/blobs/"); n != 1 {
		t.Errorf("%d blobs fetched, want the configuration only", n)
	}
	if !oci.IsIndex(img.Target.MediaType) || img.Manifest.Digest == img.Target.Digest {
		t.Errorf("target is %v", img.Target)
	}
	// What was resolved is remembered, also when pinned to its digest.
	b.reg.forget()
	pinned := b.name("app:1@" + string(img.Target.Digest))
	must(b.Resolve(t.Context(), pinned, ResolveOptions{}))(t)
	must(b.Resolve(t.Context(), b.name("app@"+string(img.Manifest.Digest)), ResolveOptions{}))(t)
	if len(b.reg.log) != 0 {
		t.Errorf("asked again: %v", b.reg.log)
	}
	arm := oci.Platform{OS: "linux", Architecture: "arm64"}
	other := must(b.Resolve(t.Context(), pinned, ResolveOptions{Platform: &arm}))(t)
	if other.Platform.Architecture != "arm64" {
		t.Errorf("chose %v", other.Platform)
	}
	if got := b.files(other.Layers)["arch"]; got != "arm64" {
		t.Errorf("layers of %q", got)
	}
}

func TestMissingPlatformListsWhatThereIs(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "app:1", twoLayers(t, "arm64"), twoLayers(t, "s390x"))
	_, err := b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{})
	var pe *PlatformError
	if !errors.As(err, &pe) || !errdefs.IsNotFound(err) {
		t.Fatalf("got %v", err)
	}
	if got := err.Error(); !strings.Contains(got, "linux/amd64, there is: linux/arm64, linux/s390x") {
		t.Error(got)
	}
}

func TestPullModeSeesAMovedTag(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "app:1", twoLayers(t, "amd64"))
	old := must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{}))(t)
	b.reg.put(t, "app:1", newForeign(t, "amd64", makeTar(t, tarMember{name: "new", body: "new"})))
	same := must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{}))(t)
	if same.ConfigDigest != old.ConfigDigest {
		t.Error("the default asked the registry although the image is here")
	}
	moved := must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{Mode: ResolvePull}))(t)
	if moved.ConfigDigest == old.ConfigDigest {
		t.Error("the moved tag was not seen")
	}
	// The old digest still means the old image.
	byDigest := must(b.Resolve(t.Context(), b.name("app@"+string(old.Target.Digest)), ResolveOptions{}))(t)
	if byDigest.ConfigDigest != old.ConfigDigest {
		t.Error("the digest means another image")
	}
}

func TestSchema1IsRefused(t *testing.T) {
	b := newBench(t)
	b.reg.do(t, "PUT", "/v2/old/manifests/1", "application/vnd.docker.distribution.manifest.v1+prettyjws",
		[]byte(`{"schemaVersion":1,"name":"old","tag":"1","fsLayers":[],"history":[]}`))
	_, err := b.Pull(t.Context(), b.name("old:1"), PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "schema 1") {
		t.Errorf("got %v", err)
	}
}

func TestLayerThatIsNotTheConfigurationsIsRefused(t *testing.T) {
	b := newBench(t)
	good := newForeign(t, "amd64", makeTar(t, tarMember{name: "a", body: "a"}))
	evil := newForeign(t, "amd64", makeTar(t, tarMember{name: "b", body: "b"}))
	evil.config = good.config
	manifest := bytes.ReplaceAll(evil.manifest, []byte(evil.config), good.config)
	var m oci.Manifest
	if m2, err := oci.ParseManifest(manifest, ""); err != nil {
		t.Fatal(err)
	} else {
		m = *m2
	}
	m.Config.Digest, m.Config.Size = digest.FromBytes(good.config), int64(len(good.config))
	evil.manifest = marshal(t, m)
	b.reg.put(t, "evil:1", evil)
	_, err := b.Pull(t.Context(), b.name("evil:1"), PullOptions{})
	var de *oci.DigestError
	if !errors.As(err, &de) {
		t.Fatalf("got %v", err)
	}
	if _, err := b.st.Layer(t.Context(), de.Want); !errdefs.IsNotFound(err) {
		t.Errorf("a false layer is visible: %v", err)
	}
	b.clean()
}

func TestTamperedBlobIsRefused(t *testing.T) {
	b := newBench(t)
	f := twoLayers(t, "amd64")
	b.reg.put(t, "app:1", f)
	victim := "/v2/app/blobs/" + string(digest.FromBytes(f.blobs[0]))
	b.reg.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "GET" || r.URL.Path != victim {
			return false
		}
		bad := bytes.Clone(f.blobs[0])
		bad[len(bad)-10] ^= 1
		_, _ = w.Write(bad)
		return true
	}
	if _, err := b.Pull(t.Context(), b.name("app:1"), PullOptions{}); err == nil {
		t.Fatal("pulled")
	}
	if _, err := b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{Mode: ResolveLocal}); !errdefs.IsNotFound(err) {
		t.Errorf("a name stands for it: %v", err)
	}
	b.reg.mu.Lock()
	b.reg.hook = nil
	b.reg.mu.Unlock()
	must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	b.clean()
}

func TestTreeIsMadeFromTheBlobThatIsHere(t *testing.T) {
	b := newBench(t)
	f := twoLayers(t, "amd64")
	b.reg.put(t, "app:1", f)
	amd, arm := oci.Platform{OS: "linux", Architecture: "amd64"}, oci.Platform{OS: "linux", Architecture: "arm64"}
	b.reg.put(t, "multi:1", f, twoLayers(t, "arm64"))
	p := must(b.Pull(t.Context(), b.name("multi:1"), PullOptions{Platform: &amd, AllPlatforms: true}))(t)
	if p.Platform.Architecture != "amd64" {
		t.Errorf("chose %v", p.Platform)
	}
	b.reg.forget()
	img := must(b.Resolve(t.Context(), b.name("multi:1"), ResolveOptions{Platform: &arm}))(t)
	if got := b.files(img.Layers)["arch"]; got != "arm64" {
		t.Errorf("layers of %q", got)
	}
	if len(b.reg.log) != 0 {
		t.Errorf("asked the registry: %v", b.reg.log)
	}
}

func TestConcurrentPullsFetchEachLayerOnce(t *testing.T) {
	b := newBench(t)
	f := twoLayers(t, "amd64")
	b.reg.put(t, "app:1", f)
	others := []*bench{b, newBenchAt(t, b.reg, b.root, Options{}), newBenchAt(t, b.reg, b.root, Options{})}
	b.reg.forget()
	errs := make(chan error, len(others))
	for _, o := range others {
		go func() {
			_, err := o.Pull(t.Context(), o.name("app:1"), PullOptions{})
			errs <- err
		}()
	}
	for range others {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, blob := range f.blobs {
		if n := b.reg.count("GET", string(digest.FromBytes(blob))); n != 1 {
			t.Errorf("layer was fetched %d times", n)
		}
	}
	b.clean()
}

func TestPullGivesTheNameBackToTheRegistry(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "app:1", twoLayers(t, "amd64"))
	mine := must(Assemble(Result{Layers: []Layer{b.built(regular("mine", "x"))}}))(t)
	must(b.Commit(t.Context(), Built{Names: []string{b.name("app:1")}, Images: []*Image{mine}}))(t)
	p := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	img := must(b.Resolve(t.Context(), b.name("app:1"), ResolveOptions{Mode: ResolveLocal}))(t)
	if img.ConfigDigest != p.ConfigDigest {
		t.Error("the name still means what was built")
	}
	list := must(b.List(t.Context(), map[string][]string{"dangling": {"true"}}))(t)
	if len(list) != 1 || list[0].ConfigDigest != mine.ConfigDigest {
		t.Errorf("what was built is not dangling: %v", list)
	}
}

func TestWithoutTreesImagesAreBlobs(t *testing.T) {
	b, far := newBench(t), newBench(t)
	want := b.reg.put(t, "app:1", twoLayers(t, "amd64"))
	why := errors.New("nobody may give files away")
	b.o.NoTrees = why
	img := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t)
	if again := must(b.Pull(t.Context(), b.name("app:1"), PullOptions{}))(t); img.UpToDate || !again.UpToDate {
		t.Errorf("up to date: %v at first, then %v", img.UpToDate, again.UpToDate)
	}
	b.reg.forget()
	if err := b.Tag(t.Context(), b.name("app:1"), b.name("copy:2")); err != nil {
		t.Fatal(err)
	}
	if got := must(b.Push(t.Context(), b.name("copy:2"), PushOptions{}))(t); got.Digest != want {
		t.Errorf("pushed %s, pulled %s", got.Digest, want)
	}
	var archive bytes.Buffer
	if err := b.Save(t.Context(), &archive, []string{b.name("copy:2")}, Format{}); err != nil {
		t.Fatal(err)
	}
	far.o.NoTrees = why
	loaded := must(far.Load(t.Context(), &archive, LoadOptions{}))(t)
	if len(loaded) != 1 || loaded[0].ConfigDigest != img.ConfigDigest {
		t.Errorf("loaded %v", loaded)
	}
	for _, b := range []*bench{b, far} {
		if _, err := b.Trees(t.Context(), img.Layers, TreeOptions{}); !errors.Is(err, why) {
			t.Errorf("trees: %v", err)
		}
		b.clean()
	}
	b.o.NoTrees = nil // the next process may
	if got := b.files(img.Layers)["arch"]; got != "amd64" {
		t.Errorf("layers of %q", got)
	}
}
