package durable

import (
	"path/filepath"
	"testing"
)

// A marker's name comes from the disk; what it names stays beneath the store.
func FuzzMarkerStaysInside(f *testing.F) {
	for _, name := range []string{"blobs%sha256%ab", "..%etc%passwd", "%etc", "a%%b", "", ".", "a%.", "a/b"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		object, err := unescape(name)
		if err != nil {
			return
		}
		if !filepath.IsLocal(object) {
			t.Errorf("%q names %q", name, object)
		}
		if again, err := unescape(escape(object)); err != nil || again != object {
			t.Errorf("%q: got %q, %v", object, again, err)
		}
	})
}
