package image

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/store"
	"den/internal/store/storetest"
)

// An image is the same whatever the form of its layers' trees.
func TestTheSameInImageForm(t *testing.T) {
	storetest.AgainInImageForm(t, "^Test(Pull|Tree|Saved|Imported|Files|Built|Lost|Squash|Dropped|Tampered|Concurrent|Rewrite|BlobOf)")
}

// A layer that was built on another rung of this store came from nowhere else.
func TestLayerOfOneFormIsMadeOfTheOther(t *testing.T) {
	open := func(t *testing.T, root string, images bool) *store.Store {
		st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), Image: images, Durability: "none"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
		return st
	}
	for _, images := range []bool{false, true} {
		root, server := t.TempDir(), newServer(t)
		here := &bench{st: open(t, root, images), t: t, root: root, reg: server}
		l := here.built(regular("a/b", "c"), regular("d", "e"))
		kin := func(ctx context.Context) (*store.Store, error) {
			return store.Open(ctx, root, store.Options{EngineDir: t.TempDir(), Image: images, Durability: "none"})
		}
		there := &bench{st: open(t, root, !images), t: t, root: root, reg: server}
		there.Images = New(there.st, nil, Options{})
		if _, err := there.Trees(t.Context(), []Layer{l}, TreeOptions{}); !errdefs.IsNotFound(err) {
			t.Fatalf("without its kin: %v", err)
		}
		there.Images = New(there.st, nil, Options{Kin: kin})
		if diff := cmp.Diff(map[string]string{"a/b": "c", "d": "e"}, there.files([]Layer{l})); diff != "" {
			t.Errorf("from images %t: %s", images, diff)
		}
		other := l
		other.DiffID = digest.FromString("nowhere")
		if _, err := there.Trees(t.Context(), []Layer{other}, TreeOptions{}); !errdefs.IsNotFound(err) {
			t.Errorf("of a layer that is nowhere: %v", err)
		}
	}
}
