package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// listed reads an archive's members.
func listed(t *testing.T, raw []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			out[h.Name] = body
		}
	}
}

func TestSavedArchiveIsBothDockersAndOCI(t *testing.T) {
	b := newBench(t)
	f := twoLayers(t, "amd64")
	b.reg.put(t, "base:1", f)
	must(b.Pull(t.Context(), b.name("base:1"), PullOptions{}))(t)
	if err := b.Tag(t.Context(), b.name("base:1"), "app:1"); err != nil {
		t.Fatal(err)
	}
	if err := b.Tag(t.Context(), b.name("base:1"), "app:2"); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := b.Save(t.Context(), &buf, []string{"app"}, Format{}); err != nil {
		t.Fatal(err)
	}
	files := listed(t, buf.Bytes())
	hex := func(raw []byte) string { return digest.FromBytes(raw).Encoded() }
	// Sizes and digests depend on who runs the test.
	words := strings.NewReplacer(
		hex(f.config), "CONFIG", hex(f.manifest), "MANIFEST", hex(f.blobs[0]), "LAYER0", hex(f.blobs[1]), "LAYER1",
		fmt.Sprintf(`"size":%d`, len(f.manifest)), `"size":0`)
	for _, name := range []string{"manifest.json", "index.json", "repositories", "oci-layout"} {
		golden(t, "save-"+name, []byte(words.Replace(string(files[name]))))
	}
	for _, raw := range [][]byte{f.config, f.manifest, f.blobs[0], f.blobs[1]} {
		if !bytes.Equal(files["blobs/sha256/"+hex(raw)], raw) {
			t.Errorf("blob %s is not in the archive", hex(raw))
		}
	}
	var again bytes.Buffer
	if err := b.Save(t.Context(), &again, []string{"app:1", "app:2"}, Format{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf.Bytes(), again.Bytes()) {
		t.Error("the same images gave another archive")
	}
}

func TestSavedImagesAreLoadedInAnotherStore(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"))
	base := must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{}))(t)
	img := b.buildOn(base, "app", "hello")
	must(b.Commit(t.Context(), Built{Names: []string{"app:1", "example.com/x:2"}, Images: []*Image{img}}))(t)
	var buf bytes.Buffer
	if err := b.Save(t.Context(), &buf, []string{"app:1", "example.com/x:2", b.name("base:1")}, Format{}); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"plain": buf.Bytes(), "gzip": gzipped(t, buf.Bytes())} {
		t.Run(name, func(t *testing.T) {
			other := newBenchAt(t, b.reg, t.TempDir(), Options{})
			got := must(other.Load(t.Context(), bytes.NewReader(raw), LoadOptions{}))(t)
			want := []Loaded{
				{"app:1", img.ConfigDigest}, {"example.com/x:2", img.ConfigDigest}, {b.name("base:1"), base.ConfigDigest},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			loaded := must(other.Resolve(t.Context(), "app:1", ResolveOptions{Mode: ResolveLocal}))(t)
			if diff := cmp.Diff(map[string]string{"etc/name": "two", "arch": "amd64", "app": "hello"}, other.files(loaded.Layers)); diff != "" {
				t.Error(diff)
			}
			if loaded.Manifest == nil {
				t.Error("the manifest was not kept")
			}
			other.clean()
		})
	}
}

// dockerSave writes an archive as docker before 25, with its links between
// layers, from files in the given order.
func dockerSave(t *testing.T, f *foreign, manifest string, more ...tarMember) []byte {
	t.Helper()
	config := digest.FromBytes(f.config).Encoded() + ".json"
	members := append([]tarMember{
		{name: "aaa/", kind: '5'},
		{name: "aaa/VERSION", body: "1.0"},
		{name: "aaa/json", body: "{}"},
		{name: "aaa/layer.tar", body: string(f.tars[0])},
		{name: config, body: string(f.config)},
	}, more...)
	if manifest == "" {
		manifest = `[{"Config":"` + config + `","RepoTags":["old:1","old:2"],"Layers":["aaa/layer.tar","bbb/layer.tar"]}]`
	}
	return makeTar(t, append(members, tarMember{name: "manifest.json", body: manifest})...)
}

func TestOldDockerArchiveWithLinksIsLoaded(t *testing.T) {
	b := newBench(t)
	same := makeTar(t, tarMember{name: "a", body: "a"})
	f := newForeign(t, "amd64", same, same)
	raw := dockerSave(t, f, "", tarMember{name: "bbb/layer.tar", kind: tar.TypeSymlink, link: "../aaa/layer.tar"})
	got := must(b.Load(t.Context(), bytes.NewReader(raw), LoadOptions{}))(t)
	id := digest.FromBytes(f.config)
	if diff := cmp.Diff([]Loaded{{"old:1", id}, {"old:2", id}}, got); diff != "" {
		t.Error(diff)
	}
	// Its plain tars are no blobs to push: they are compressed first.
	if err := b.Tag(t.Context(), "old:1", b.name("old:1")); err != nil {
		t.Fatal(err)
	}
	must(b.Push(t.Context(), b.name("old:1"), PushOptions{}))(t)
	m := must(oci.ParseManifest(b.reg.get(t, "/v2/old/manifests/1"), ""))(t)
	if m.Layers[0].MediaType != oci.MediaTypeLayerGzip {
		t.Errorf("pushed %s", m.Layers[0].MediaType)
	}
	b.clean()
}

func TestHostileArchivesAreRefused(t *testing.T) {
	f := newForeign(t, "amd64", makeTar(t, tarMember{name: "a", body: "a"}), makeTar(t, tarMember{name: "b", body: "b"}))
	config := digest.FromBytes(f.config).Encoded() + ".json"
	layerB := tarMember{name: "bbb/layer.tar", body: string(f.tars[1])}
	big := `[{"Config":"` + config + `","RepoTags":null,"Layers":[` + strings.Repeat(`"x",`, maxLayers) + `"x"]}]`
	tests := []struct {
		name string
		raw  []byte
		want string
	}{
		{"nothing", makeTar(t), "neither index.json nor manifest.json"},
		{"not a tar", []byte("hello, world, this is not an archive at all"), "archive"},
		{"cut off", dockerSave(t, f, "", layerB)[:2000], "EOF"},
		{"links in a circle", dockerSave(t, f, "", tarMember{name: "bbb/layer.tar", kind: tar.TypeSymlink, link: "layer.tar"}), "too many links"},
		{"link to the outside", dockerSave(t, f, "", tarMember{name: "bbb/layer.tar", kind: tar.TypeSymlink, link: "../../../../etc/passwd"}), "has no member"},
		{"configuration outside", dockerSave(t, f, `[{"Config":"../../etc/passwd","Layers":[]}]`), "has no member"},
		{"too few layers", dockerSave(t, f, `[{"Config":"`+config+`","Layers":["aaa/layer.tar"]}]`), "names 2"},
		{"too many layers", dockerSave(t, f, big), "501 layers"},
		{"layers swapped", dockerSave(t, f, `[{"Config":"`+config+`","RepoTags":["evil:1"],"Layers":["bbb/layer.tar","aaa/layer.tar"]}]`, layerB), "want sha256:"},
		{"name that is none", dockerSave(t, f, `[{"Config":"`+config+`","RepoTags":["UPPER:1"],"Layers":["aaa/layer.tar","bbb/layer.tar"]}]`, layerB), "UPPER"},
		{"manifest that is none", dockerSave(t, f, `{"Config":1}`), "manifest.json"},
		{"index with a false digest", makeTar(t,
			tarMember{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`},
			tarMember{name: "blobs/sha256/" + strings.Repeat("0", 64), body: string(f.manifest)},
			tarMember{name: "index.json", body: `{"schemaVersion":2,"manifests":[{"mediaType":"` + oci.MediaTypeManifest +
				`","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}]}`}), "want sha256:0000"},
		{"one name again and again", makeTar(t, slices.Repeat([]tarMember{{name: "x", kind: tar.TypeSymlink, link: "y"}}, maxArchiveEntries+1)...), "more than 20000 members"},
		{"empty index", makeTar(t, tarMember{name: "index.json", body: `{"schemaVersion":2,"manifests":[]}`}), "lists no image"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			got, err := b.Load(t.Context(), bytes.NewReader(tt.raw), LoadOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("loaded %v with error %v, want %q", got, err, tt.want)
			}
			list := must(b.List(t.Context(), nil))(t)
			if len(list) != 0 {
				t.Errorf("%d images have a name", len(list))
			}
			b.clean()
		})
	}
}

func TestBlobOfAnotherLayerIsRefusedThoughTheTreeIsHere(t *testing.T) {
	b := newBench(t)
	good := newForeign(t, "amd64", makeTar(t, tarMember{name: "a", body: "a"}))
	config := digest.FromBytes(good.config).Encoded() + ".json"
	manifest := func(tag string) string {
		return `[{"Config":"` + config + `","RepoTags":["` + tag + `"],"Layers":["aaa/layer.tar"]}]`
	}
	must(b.Load(t.Context(), bytes.NewReader(dockerSave(t, good, manifest("good:1"))), LoadOptions{}))(t)
	evil := newForeign(t, "amd64", makeTar(t, tarMember{name: "a", body: "evil"}))
	evil.config = good.config
	_, err := b.Load(t.Context(), bytes.NewReader(dockerSave(t, evil, manifest("evil:1"))), LoadOptions{})
	var de *oci.DigestError
	if !errors.As(err, &de) || de.Want != digest.FromBytes(good.tars[0]) || !strings.Contains(err.Error(), "does not belong to the image's configuration") {
		t.Errorf("got %v", err)
	}
	if _, err := b.Resolve(t.Context(), "evil:1", ResolveOptions{Mode: ResolveLocal}); !errdefs.IsNotFound(err) {
		t.Errorf("it has a name: %v", err)
	}
	b.clean()
}

func TestBlobsOfOtherPlatformsAreChecked(t *testing.T) {
	b := newBench(t)
	mine := newForeign(t, "amd64", makeTar(t, tarMember{name: "a", body: "a"}))
	evil := newForeign(t, "arm64", makeTar(t, tarMember{name: "b", body: "b"}))
	blob := gzipped(t, makeTar(t, tarMember{name: "b", body: "another"}))
	m := *must(oci.ParseManifest(evil.manifest, ""))(t)
	m.Layers[0].Digest, m.Layers[0].Size = digest.FromBytes(blob), int64(len(blob))
	evil.manifest, evil.blobs = marshal(t, m), [][]byte{blob}
	b.reg.put(t, "app:1", mine, evil)
	_, err := b.Pull(t.Context(), b.name("app:1"), PullOptions{AllPlatforms: true})
	var de *oci.DigestError
	if !errors.As(err, &de) || de.Want != digest.FromBytes(evil.tars[0]) {
		t.Errorf("pulled with error %v", err)
	}
	if list := must(b.List(t.Context(), nil))(t); len(list) != 0 {
		t.Errorf("%d images have a name", len(list))
	}
	b.clean()
}

func TestLayoutDirectoryKeepsItsOtherImages(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	for _, name := range []string{"a:1", "b:1", "a:1"} {
		img := b.buildOn(nil, "name", name)
		blobs := must(b.Blobs(t.Context(), []*Image{img}, Format{}))(t)
		if err := b.ExportLayout(t.Context(), dir, blobs, []string{name}, Format{}); err != nil {
			t.Fatal(err)
		}
		if err := blobs.Close(); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index oci.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range index.Manifests {
		names = append(names, d.Annotations[nameAnnotation])
	}
	if diff := cmp.Diff([]string{"docker.io/library/b:1", "docker.io/library/a:1"}, names); diff != "" {
		t.Error(diff)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp-*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestImportedTarBecomesAnImage(t *testing.T) {
	b := newBench(t)
	raw := gzipped(t, makeTar(t, tarMember{name: "z", body: "z"}, tarMember{name: "a", body: "a"}))
	img := must(b.Import(t.Context(), bytes.NewReader(raw), ImportOptions{
		Name: "rootfs:1", Message: "made by hand",
		Changes: []string{
			`CMD ["/bin/sh"]`, `ENV A=1 B="two words"`, `ENV C=$A`, `EXPOSE 80 53/udp 8000-8001`, `LABEL k=v`, `WORKDIR /srv`, `USER 7`,
			`VOLUME /data`, `STOPSIGNAL SIGINT`, `ENTRYPOINT exec app`, `ONBUILD RUN true`,
			`HEALTHCHECK --interval=5s CMD ["true"]`,
		},
	}))(t)
	c := must(img.Parse())(t)
	golden(t, "import-config.json", marshal(t, c.Config))
	if c.History[0].Comment != "made by hand" {
		t.Errorf("history is %+v", c.History)
	}
	// The diffID is the canonical tar's: the layer can be written from its tree.
	must(b.Push(t.Context(), func() string {
		if err := b.Tag(t.Context(), "rootfs:1", b.name("rootfs:1")); err != nil {
			t.Fatal(err)
		}
		return b.name("rootfs:1")
	}(), PushOptions{}))(t)
	for _, bad := range []string{"RUN true", "FROM x", "COPY a b", "NONSENSE", "ENV", "EXPOSE", "EXPOSE x", "EXPOSE 9-8"} {
		if err := ApplyChanges(&oci.Image{}, []string{bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := b.Import(t.Context(), strings.NewReader("no tar, but long enough to be looked at"), ImportOptions{}); err == nil {
		t.Error("imported what is no tar")
	}
	b.clean()
}

func TestFilesAreExportedFlat(t *testing.T) {
	b := newBench(t)
	b.reg.put(t, "base:1", twoLayers(t, "amd64"), twoLayers(t, "arm64"))
	p := must(b.Pull(t.Context(), b.name("base:1"), PullOptions{AllPlatforms: true}))(t)
	arm := oci.Platform{OS: "linux", Architecture: "arm64"}
	images := []*Image{p.Image, must(b.Resolve(t.Context(), b.name("base:1"), ResolveOptions{Platform: &arm}))(t)}

	dir := t.TempDir()
	outside := write(t, t.TempDir(), "precious", "precious")
	write(t, dir, "kept", "kept")
	if err := os.Symlink(outside, filepath.Join(dir, "arch")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := b.ExportLocal(t.Context(), dir, images[:1], FilesOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"kept": "kept", "arch": "amd64", "etc/name": "two", "etc/link": "two"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if raw, _ := os.ReadFile(outside); string(raw) != "precious" {
		t.Error("a link led out of the directory")
	}
	if st, err := os.Stat(filepath.Join(dir, "arch")); err != nil || !st.ModTime().Equal(day) {
		t.Errorf("time is %v, %v", st.ModTime(), err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "gone")); !os.IsNotExist(err) {
		t.Errorf("a removed file came back: %v", err)
	}
	if err := b.ExportLocal(t.Context(), t.TempDir(), images, FilesOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("two platforms over each other: %v", err)
	}

	epoch := day.AddDate(-1, 0, 0)
	var buf bytes.Buffer
	if err := b.ExportTar(t.Context(), &buf, images, FilesOptions{Split: true, Epoch: &epoch}); err != nil {
		t.Fatal(err)
	}
	files := listed(t, buf.Bytes())
	if string(files["linux_arm64/arch"]) != "arm64" || string(files["linux_amd64/arch"]) != "amd64" || len(files) != 4 {
		t.Errorf("tar holds %d files", len(files))
	}
	h, err := tar.NewReader(bytes.NewReader(buf.Bytes())).Next()
	if err != nil || h.Name != "linux_amd64/" || !h.ModTime.Equal(epoch) {
		t.Errorf("tar begins with %+v, %v", h, err)
	}
}

func FuzzArchiveDocuments(f *testing.F) {
	f.Add([]byte(`[{"Config":"a.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]`), []byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Add([]byte(`null`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, manifest, index []byte) {
		if entries, err := parseDockerManifest(manifest); err == nil {
			for _, e := range entries {
				if len(e.Layers) > maxLayers || e.Config == "" {
					t.Errorf("accepted %+v", e)
				}
				for _, name := range append(e.Layers, e.Config) {
					if strings.HasPrefix(member(name), "/") || strings.HasPrefix(member(name), "../") {
						t.Errorf("member of %q is %q", name, member(name))
					}
				}
			}
		}
		if x, err := oci.ParseIndex(index, oci.MediaTypeIndex); err == nil {
			_, _ = candidates(x, oci.Platform{OS: "linux", Architecture: "amd64"})
			for _, d := range x.Manifests {
				_ = layoutName(d)
			}
		}
		if m, err := parseImageManifest(index, ""); err == nil && len(m.Layers) > maxLayers {
			t.Errorf("accepted %d layers", len(m.Layers))
		}
		if c, err := parseConfig(manifest); err == nil && len(c.RootFS.DiffIDs) > maxLayers {
			t.Errorf("accepted %d layers", len(c.RootFS.DiffIDs))
		}
	})
}
