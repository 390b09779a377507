package image

import (
	"bytes"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
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
		here.Images = New(here.st, nil, Options{})
		l := here.built(regular("a/b", "c"), regular("d", "e"))
		there := &bench{st: open(t, root, !images), t: t, root: root, reg: server}
		there.Images = New(there.st, nil, Options{})
		kinImage(t, here, there, l)
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

// kinImage checks that what needs no tree of its own makes none: names, sizes, tars and blobs.
func kinImage(t *testing.T, here, there *bench, l Layer) {
	t.Helper()
	ctx := t.Context()
	img, err := Assemble(Result{Layers: []Layer{l}})
	if err != nil {
		t.Fatal(err)
	}
	var of [2]*Summary
	for i, b := range []*bench{here, there} {
		if _, err := b.Commit(ctx, Built{Names: []string{"app"}, Images: []*Image{img}}); err != nil {
			t.Fatal(err)
		}
		if of[i], err = b.summary(ctx, img, map[oci.Digest]int64{}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(of[0], of[1]); diff != "" || of[0].SizeBytes == 0 {
		t.Errorf("its sizes here and there: %s", diff)
	}
	var tar bytes.Buffer
	lt, err := there.LayerTar(ctx, l)
	if err == nil {
		err = errors.Join(lt.Write(ctx, &tar), lt.Close())
	}
	if err != nil || digest.FromBytes(tar.Bytes()) != l.DiffID || lt.SizeBytes != int64(tar.Len()) {
		t.Errorf("its tar has %d bytes, not %d: %v", tar.Len(), lt.SizeBytes, err)
	}
	blobs, err := there.Blobs(ctx, []*Image{img}, Format{})
	if err != nil {
		t.Fatal(err)
	}
	if err := blobs.Close(); err != nil {
		t.Error(err)
	}
	if _, err := there.st.Layer(ctx, l.DiffID); !errdefs.IsNotFound(err) {
		t.Errorf("a tree was made of it: %v", err)
	}
}
