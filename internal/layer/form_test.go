package layer

import (
	"os"
	"path/filepath"
	"testing"
)

// A form is one of the two that trees have on disk.
type form struct{ image bool }

func (f form) String() string {
	if f.image {
		return "image"
	}
	return "directory"
}

// with is o for trees of this form.
func (f form) with(o UnpackOptions) UnpackOptions {
	o.Image = f.image
	return o
}

// at makes path ready to become a tree.
func (f form) at(t testing.TB, path string) string {
	t.Helper()
	if !f.image {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// new is a place for a tree.
func (f form) new(t testing.TB) string {
	t.Helper()
	return f.at(t, filepath.Join(t.TempDir(), "tree"))
}

// forms are all of them.
func forms() []form { return []form{{}, {image: true}} }

// eachForm runs a test in every form.
func eachForm(t *testing.T, fn func(t *testing.T, f form)) {
	for _, f := range forms() {
		t.Run(f.String(), func(t *testing.T) { fn(t, f) })
	}
}
