package image

import (
	"maps"
	"os"
	"testing"
	"time"

	"den/internal/layer"
	"den/internal/oci"
)

// removal is a whiteout.
func removal(path string) layer.File {
	return layer.File{Entry: oci.Entry{Path: path, Whiteout: true}}
}

func directory(path string) layer.File {
	return layer.File{Entry: oci.Entry{
		Path: path, Mode: 0o40755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), ModTime: day,
	}}
}

// link is a second name of a file.
func link(path, first string) layer.File {
	f := regular(path, "")
	f.Hardlink, f.Link, f.Open = true, first, nil
	return f
}

// onBase is a result of a base image and layers of its own.
func onBase(t *testing.T, b *bench, own ...Layer) Result {
	base := b.built(directory("dir"), regular("dir/old", "old"), regular("gone", "gone"))
	img := must(Assemble(Result{Layers: []Layer{base}}))(t)
	return Result{Config: img.Config, Base: img.Config, Layers: append([]Layer{base}, own...)}
}

func TestSquashMakesOneLayerOfTheSameFiles(t *testing.T) {
	b := newBench(t)
	first := b.built(regular("a", "first"), regular("b", "b"), removal("dir"), removal("gone"))
	second := b.built(regular("a", "second"), removal("b"), directory("dir"), regular("dir/new", "new"))
	r := onBase(t, b, first, second)
	want := b.files(r.Layers)
	for name, test := range map[string]struct {
		w      Rewriting
		layers int
	}{
		"own": {Rewriting{Squash: true}, 2}, "all": {Rewriting{Squash: true, All: true}, 1},
	} {
		out, held, err := b.Rewrite(t.Context(), r, test.w, Format{})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Layers) != test.layers || (out.Layers[0].DiffID == r.Layers[0].DiffID) == test.w.All {
			t.Errorf("%s: layers %v", name, out.Layers)
		}
		if got := b.files(out.Layers); !maps.Equal(got, want) {
			t.Errorf("%s: files %v, want %v", name, got, want)
		}
		if test.w.All {
			out.Base = nil
		}
		img := must(Assemble(out))(t)
		if err := must(b.Blobs(t.Context(), []*Image{img}, Format{}))(t).Close(); err != nil {
			t.Error(err)
		}
		if err := held.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDroppedPathsAreLeftOutOfOwnLayers(t *testing.T) {
	b := newBench(t)
	own := b.built(
		directory("cache"), regular("cache/a", "kept by its other name"), regular("cache/b", "b"), regular("cached", "stays"),
		directory("dir"), regular("dir/new", "new"), link("linked", "cache/a"), link("linked2", "cache/a"))
	out, held, err := b.Rewrite(t.Context(), onBase(t, b, own), Rewriting{Drop: []string{"/cache/", "dir/new"}}, Format{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	want := map[string]string{"dir/old": "old", "gone": "gone", "linked": "kept by its other name", "cached": "stays"}
	if got := b.files(out.Layers); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	trees := must(b.Trees(t.Context(), out.Layers[1:], TreeOptions{}))(t)
	defer closeTrees(trees)
	links := 0
	for f, err := range layer.WalkStack(trees[0].Dirs()) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Hardlink && f.Link == "linked" && f.Path == "linked2" {
			links++
		}
	}
	if links != 1 {
		t.Error("the names that stay are not one file any more")
	}
}

func TestRewritingNothingKeepsTheLayers(t *testing.T) {
	b := newBench(t)
	r := onBase(t, b, b.built(regular("a", "a")))
	out, held, err := b.Rewrite(t.Context(), r, Rewriting{}, Format{})
	if err != nil || held.Close() != nil || out.Layers[1] != r.Layers[1] {
		t.Errorf("%v %v", out.Layers, err)
	}
	// A base alone has no layer of its own to change.
	epoch := time.Unix(0, 0)
	r.Layers = r.Layers[:1]
	out, held, err = b.Rewrite(t.Context(), r, Rewriting{Squash: true, Epoch: &epoch, Drop: []string{"/"}}, Format{})
	if err != nil || held.Close() != nil || out.Layers[0] != r.Layers[0] {
		t.Errorf("%v %v", out.Layers, err)
	}
}
