package image

import (
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// forPlatform is an image of one layer.
func forPlatform(t *testing.T, b *bench, arch, text string) *Image {
	t.Helper()
	l := b.built(regular("file", text))
	config := []byte(`{"architecture":"` + arch + `","os":"linux","config":{},"rootfs":{"type":"layers"}}`)
	return must(Assemble(Result{Config: config, Layers: []Layer{l}}))(t)
}

func TestListHasOneImageForEachPlatform(t *testing.T) {
	b := newBench(t)
	if err := b.CreateList(t.Context(), "list"); err != nil {
		t.Fatal(err)
	}
	if err := b.CreateList(t.Context(), "list"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("again: %v", err)
	}
	if members, err := b.Members(t.Context(), "list"); err != nil || len(members) != 0 {
		t.Errorf("a new list has %v, %v", members, err)
	}
	first, second := forPlatform(t, b, "amd64", "1"), forPlatform(t, b, "amd64", "2")
	for _, img := range []*Image{first, forPlatform(t, b, "arm64", "1"), second} {
		if err := b.AddToList(t.Context(), "list", []*Image{img}); err != nil {
			t.Fatal(err)
		}
	}
	members := must(b.Members(t.Context(), "list"))(t)
	if len(members) != 2 || members[0].Platform.Architecture != "arm64" || members[1].ConfigDigest != second.ConfigDigest {
		t.Errorf("members %v", members)
	}
	if err := b.AddToList(t.Context(), "nothing", []*Image{first}); !errdefs.IsNotFound(err) {
		t.Errorf("no list: %v", err)
	}
	blobs := must(b.Blobs(t.Context(), members, Format{Index: true}))(t)
	defer blobs.Close()
	index, err := oci.ParseIndex(blobs.Raw(), blobs.Target.MediaType)
	if err != nil || len(index.Manifests) != 2 {
		t.Errorf("%s: %v", blobs.Raw(), err)
	}
}

func TestIndexMayHaveOneImage(t *testing.T) {
	b := newBench(t)
	img := forPlatform(t, b, "amd64", "1")
	for wanted, is := range map[bool]bool{true: true, false: false} {
		blobs := must(b.Blobs(t.Context(), []*Image{img}, Format{Index: wanted}))(t)
		if got := oci.IsIndex(blobs.Target.MediaType); got != is {
			t.Errorf("index %t: it is a %s", wanted, blobs.Target.MediaType)
		}
		if err := blobs.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestEmptyListIsNoImageAndCanBeRemoved(t *testing.T) {
	b := newBench(t)
	if err := b.CreateList(t.Context(), "list"); err != nil {
		t.Fatal(err)
	}
	if list, err := b.List(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := b.Resolve(t.Context(), "list", ResolveOptions{Mode: ResolveLocal}); !errdefs.IsNotFound(err) {
		t.Errorf("resolve: %v", err)
	}
	if err := b.Tag(t.Context(), "list", "other"); err != nil {
		t.Errorf("tag: %v", err)
	}
	for _, name := range []string{"list", "other"} {
		if _, err := b.Remove(t.Context(), name, RemoveOptions{}); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if _, err := b.Members(t.Context(), "list"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}
