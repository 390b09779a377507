package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/erofs"
)

// everything is a layer with an entry of each kind that anybody can make.
func everything() []File {
	big := reg("d/big", strings.Repeat("0123456789abcdef", 3*chunkSize/16)+"end")
	big.Xattrs = map[string][]byte{"user.a": []byte("b")}
	opaque := dir("d/opaque")
	opaque.Opaque = true
	again := hardlink("d/t", "d/s")
	again.Mode = symlink("d/s", "a").Mode // as a walk has it
	return []File{
		dir("d"), reg("d/a", "aaa"), hardlink("d/b", "d/a"), big, reg("d/empty", ""), opaque, reg("d/opaque/in", "in"),
		symlink("d/s", "a"), again, whiteoutOf("d/z"), reg(strings.Repeat("long", 40), "x"),
	}
}

func TestTarOfALayerIsBuiltLikeItsFiles(t *testing.T) {
	data, want := tarOf(t, all(everything()...))
	eachForm(t, func(t *testing.T, f form) {
		tree := f.new(t)
		got, err := BuildTar(context.Background(), tree, bytes.NewReader(data), f.with(UnpackOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("it is %+v, want %+v", got, want)
		}
		if _, walked := tarOf(t, WalkUpper(tree)); walked != want {
			t.Errorf("the tree is %+v, want %+v", walked, want)
		}
		plain := f.new(t)
		if err := CreateTar(context.Background(), plain, bytes.NewReader(data), f.with(UnpackOptions{})); err != nil {
			t.Fatal(err)
		}
		if _, walked := tarOf(t, WalkUpper(plain)); walked != want {
			t.Errorf("the tree without a digest is %+v, want %+v", walked, want)
		}
	})
}

func TestTarThatNoWalkGivesIsRefused(t *testing.T) {
	opq, whiteout := file("d/.wh..wh..opq", 0), file("d/.wh.x", 0)
	for name, headers := range map[string][]*tar.Header{
		"twice":                    {file("a", 1), file("a", 2)},
		"out of order":             {file("b", 1), file("a", 1)},
		"mark behind the content":  {folder("d"), file("d/a", 1), opq},
		"removed and made":         {folder("d"), whiteout, file("d/x", 1)},
		"below a file":             {file("d", 1), file("d/x", 1)},
		"below a link":             {link("d", "."), file("d/x", 1)},
		"link to what comes later": {hard("a", "b"), file("b", 1)},
		"link through a link":      {folder("a"), file("a/f", 1), link("b", "a"), hard("c", "b/f")},
		"link through two":         {folder("a"), file("a/f", 1), link("b", "a"), hard("c", "b"), hard("d", "c/f")},
		"link to a directory":      {folder("a"), hard("b", "a")},
		"link to a removal":        {file(".wh.a", 0), hard("b", "a")},
		"link to nothing":          {hard("b", "a")},
		"link out of it":           {hard("b", "../a")},
		"name out of it":           {file("../a", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			data := rawTar(t, headers...)
			tree := form{image: true}.new(t)
			_, err := BuildTar(context.Background(), tree, bytes.NewReader(data), UnpackOptions{Image: true})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v", err)
			}
			if _, err := os.Lstat(tree); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a tree: %v", err)
			}
		})
	}
}

func TestSparseFileIsNoLayerOfDen(t *testing.T) {
	err := CreateTar(context.Background(), form{image: true}.new(t), bytes.NewReader(gnuSparse(t, 1<<30)), UnpackOptions{Image: true})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
}

func TestEntriesOfABuiltTarAreBounded(t *testing.T) {
	data := rawTar(t, folder("d"), file("d/a", 1), file("d/b", 1))
	for most, ok := range map[int]bool{2: false, 3: true} {
		err := CreateTar(context.Background(), form{image: true}.new(t), bytes.NewReader(data), UnpackOptions{Image: true, MaxEntries: most})
		if (err == nil) != ok {
			t.Errorf("at most %d entries of 3: %v", most, err)
		}
	}
}

// FuzzBuildTar wants of each tar that is taken that its digest is the tree's.
func FuzzBuildTar(f *testing.F) {
	data, _ := tarOf(f, all(everything()...))
	f.Add(data)
	f.Add(rawTar(f, folder("d"), file("d/.wh..wh..opq", 0), file("d/f", 30), hard("d/h", "d/f"), link("l", "d"), file("l.wh.x", 0)))
	f.Add(rawTar(f, link("a", "/"), hard("b", "a"), hard("c", "b")))
	f.Add([]byte{})
	base := f.TempDir()
	n := 0
	f.Fuzz(func(t *testing.T, data []byte) {
		n++
		tree := fmt.Sprintf("%s/%d", base, n)
		got, err := BuildTar(context.Background(), tree, bytes.NewReader(data), UnpackOptions{Image: true, MaxEntries: 1000})
		if err != nil {
			return
		}
		defer func() { _ = erofs.Remove(tree) }()
		checkWalk(t, tree, got)
	})
}

// checkWalk wants a tree to be what it was said to be.
func checkWalk(t *testing.T, tree string, want Applied) {
	t.Helper()
	got, err := WriteTar(context.Background(), io.Discard, WalkUpper(tree))
	if err != nil {
		t.Fatal(err)
	}
	if got.Devices = want.Devices; got != want {
		t.Errorf("the tree is %+v, it was said to be %+v", got, want)
	}
}

// A tree that is to have no name is the same tree, and nothing is hashed.
func TestUnnamedTreeIsNotHashed(t *testing.T) {
	data, want := tarOf(t, all(everything()...))
	eachForm(t, func(t *testing.T, f form) {
		tree := f.new(t)
		got, err := Unpack(context.Background(), bytes.NewReader(data), tree, f.with(UnpackOptions{Unnamed: true}))
		if err != nil || got.DiffID != "" || got.SizeBytes != want.SizeBytes {
			t.Errorf("%+v, %v", got, err)
		}
		checkWalk(t, tree, want)
	})
}
