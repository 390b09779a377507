package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"den/internal/layer"
	"den/internal/snapshot"
	"den/internal/snapshot/snapshottest"
)

// imageTree is a layer in image form.
type imageTree struct {
	*snapshottest.Tree
	path string
}

func (t imageTree) Dirs() []string { return []string{t.path} }

func newImageTree(t *testing.T, files ...layer.File) imageTree {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	if _, err := layer.Build(t.Context(), path, func(yield func(layer.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}, layer.UnpackOptions{Image: true}); err != nil {
		t.Fatal(err)
	}
	return imageTree{&snapshottest.Tree{}, path}
}

// imageDraft is one whose tree is to be an image.
type imageDraft struct{ dir string }

func (d imageDraft) FS() string   { return filepath.Join(d.dir, "image.erofs") }
func (d imageDraft) Work() string { return filepath.Join(d.dir, "work") }
func (d imageDraft) Close() error { return nil }

func TestImagesAreStackedAndTheChangesAreAnImage(t *testing.T) {
	below, hidden := newImageTree(t, snapshottest.File("a", "1")), newImageTree(t, snapshottest.File("b", "2"))
	opaque := snapshottest.Dir(".")
	opaque.Opaque = true
	top := newImageTree(t, opaque, snapshottest.File("c", "3"))
	d := snapshot.Images()
	for name, c := range map[string]struct {
		stack []snapshot.Tree
		want  []string
	}{
		"two":              {[]snapshot.Tree{below, hidden}, []string{hidden.path, below.path}},
		"opaque root ends": {[]snapshot.Tree{below, hidden, top}, []string{top.path}},
		"none":             {nil, nil},
	} {
		draft := imageDraft{t.TempDir()}
		a, err := d.Prepare(t.Context(), c.stack, draft)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if a.Root.Type != "overlay" || a.Root.Upper != draft.FS() || len(a.Root.Lower) != len(c.want) {
			t.Errorf("%s: %+v", name, a.Root)
		}
		for i, want := range c.want {
			if a.Root.Lower[i] != want {
				t.Errorf("%s: lower %d is %s, want %s", name, i, a.Root.Lower[i], want)
			}
		}
		if err := d.Changes(t.Context(), a); err == nil {
			t.Errorf("%s: a sandbox that left nothing behind is no error", name)
		}
		if _, err := layer.Build(t.Context(), draft.FS(), layer.WalkUpper(newImageTree(t, snapshottest.File("new", "x")).path), layer.UnpackOptions{Image: true}); err != nil {
			t.Fatal(err)
		}
		if err := d.Changes(t.Context(), a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if applied, err := snapshot.Commit(t.Context(), a); err != nil || applied.Entries != 1 {
			t.Errorf("%s: commit %+v, %v", name, applied, err)
		}
	}
	v, err := d.View(t.Context(), []snapshot.Tree{below})
	if err != nil || v.Root.Upper != "" || len(v.Root.Options) != 1 || v.Root.Options[0] != "ro" {
		t.Errorf("view: %+v, %v", v, err)
	}
	if err := errors.Join(os.Remove(below.path), os.WriteFile(below.path, []byte("no image"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.View(t.Context(), []snapshot.Tree{below, hidden}); err == nil {
		t.Error("a broken image is no error")
	}
}
