package build

import (
	"path/filepath"
	"strings"
	"testing"

	"den/internal/oci"
	"den/internal/store"
	"den/internal/sys/systest"
)

// An unchanged build takes the records of its steps and the layers they name,
// and does not care what else is in the store.
func TestUnchangedBuildOpensOnlyWhatItNames(t *testing.T) {
	r := newRig(t)
	dir := r.context(map[string]string{"Dockerfile": copyAll, "a": "one", "b": "two"})
	res, _ := r.solve(Request{Context: dir, Tags: []string{"app:test"}})
	other := r.context(map[string]string{"Dockerfile": copyAll, "a": "three", "b": "four"})
	r.solve(Request{Context: other, Tags: []string{"app:other"}})

	first := r.opened(dir, res.ImageID)
	named := map[string]bool{}
	d := r.open()
	for _, diffID := range r.config("app:test").RootFS.DiffIDs {
		named[d.store.LayerID(diffID)] = true
	}
	records := 0
	for path := range first {
		if strings.HasPrefix(path, "cache/") {
			records++
		}
		kind, rest, _ := strings.Cut(path, "/")
		switch {
		case kind == "layers" && !named[filepath.Base(rest)]:
			t.Errorf("opened the layer %s, which the image has not", path)
		case kind == "blobs":
			t.Errorf("opened the blob %s, which nothing asked for", path)
		case rest == "" || strings.Count(path, "/") < 2 && kind != "pulled":
			t.Errorf("listed the folder %s", path)
		}
	}

	if records == 0 {
		t.Errorf("opened no record: %v", first)
	}

	// However much there is beside it.
	for i := range 50 {
		name := "more:" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		ref := store.Ref{Name: name, Record: store.Record{Blobs: []oci.Digest{res.ImageID}}}
		if err := d.store.SetPulledRef(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	for path := range r.opened(dir, res.ImageID) {
		if first[path] == 0 {
			t.Errorf("opened %s too, now that there is more in the store", path)
		}
	}
}

// opened is what an unchanged build of dir opens.
func (r *rig) opened(dir string, want oci.Digest) map[string]int {
	r.t.Helper()
	return systest.Opened(r.t, r.root, func() {
		again, s := r.solve(Request{Context: dir, Tags: []string{"app:test"}})
		if again.ImageID != want || len(s.executed()) > 0 {
			r.t.Errorf("the image is %s and %q were executed", again.ImageID, s.executed())
		}
	})
}
