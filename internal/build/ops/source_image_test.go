package ops

import (
	"context"
	"encoding/json"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
)

// commitImage names an image of these layers in the store.
func commitImage(t *testing.T, env *Env, name string, r *Ref) *image.Image {
	t.Helper()
	var c oci.Image
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.RootFS.Type = "layers"
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Assemble(image.Result{Config: config, Layers: r.Layers()})
	if err != nil {
		t.Fatal(err)
	}
	img, err = env.Images.Commit(context.Background(), image.Built{Names: []string{name}, Images: []*image.Image{img}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func newImageSource(t *testing.T, env *Env, name string, attrs map[string]string) *imageOp {
	t.Helper()
	op, err := newImageOp(env, sourceVertex("docker-image://"+name, attrs), name)
	if err != nil {
		t.Fatal(err)
	}
	return op.(*imageOp)
}

func TestLocalImagesAreSources(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	made := testRef(t, env, testFile{name: "a", content: "x"})
	commitImage(t, env, "docker.io/library/mine:1", made)
	r, m := execOne(t, newImageSource(t, env, "docker.io/library/mine:1", nil))
	if r.ID() != made.ID() || content(t, r) != "a -rw-r--r-- x\n" {
		t.Errorf("another content:\n%s", content(t, r))
	}
	if !m.NoRecord {
		t.Error("an image is recorded as if it were made")
	}
	if _, again := execOne(t, newImageSource(t, env, "docker.io/library/mine:1", nil)); again.Digest != m.Digest {
		t.Error("the key changed")
	}
}

func TestImageFromScratchIsTheEmptyStack(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	commitImage(t, env, "docker.io/library/empty:1", env.newRef(nil, ""))
	r, _ := execOne(t, newImageSource(t, env, "docker.io/library/empty:1", nil))
	if trees, err := r.Trees(context.Background()); err != nil || len(trees) != 0 || r.ID() != "" {
		t.Errorf("%v, %v, ID %q", trees, err, r.ID())
	}
	fs, done, err := r.FS(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if list, err := fs.ReadDir("/"); err != nil || len(list) != 0 {
		t.Errorf("root of scratch: %v, %v", list, err)
	}
}

func TestImageAttributesAreChecked(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	commitImage(t, env, "docker.io/library/mine:1", testRef(t, env, testFile{name: "a", content: "x"}))
	for _, attrs := range []map[string]string{
		{pb.AttrImageResolveMode: "sometimes"},
		{pb.AttrImageChecksum: "md5:abc"},
		{pb.AttrImageLayerLimit: "0"},
		{"image.new": "x"},
	} {
		if _, err := newImageOp(env, sourceVertex("docker-image://x", attrs), "x"); err == nil {
			t.Errorf("%v: accepted", attrs)
		}
	}
	for _, attrs := range []map[string]string{
		{pb.AttrImageLayerLimit: "2"},
		{pb.AttrImageChecksum: "sha256:0000000000000000000000000000000000000000000000000000000000000000"},
	} {
		if _, err := newImageSource(t, env, "docker.io/library/mine:1", attrs).CacheMap(context.Background(), progress.Discard); err == nil {
			t.Errorf("%v: accepted", attrs)
		}
	}
}

func TestUnknownSourcesAndOperationsAreRefused(t *testing.T) {
	resolve := NewResolver(&Env{})
	for id, class := range map[string]func(error) bool{
		"ftp://host/file":              errdefs.IsInvalidArgument,
		"nonsense":                     errdefs.IsInvalidArgument,
		"docker-image+blob://x@sha256": errdefs.IsNotImplemented,
	} {
		if _, err := resolve(sourceVertex(id, nil)); !class(err) {
			t.Errorf("%s: %v", id, err)
		}
	}
	v := sourceVertex("", nil)
	for _, op := range []*pb.Op{
		{Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}},
		{Op: &pb.Op_Build{Build: &pb.BuildOp{}}},
		{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{}}},
		{},
	} {
		v.Op = op
		if _, err := resolve(v); !errdefs.IsNotImplemented(err) {
			t.Errorf("%T: %v", op.Op, err)
		}
	}
}
