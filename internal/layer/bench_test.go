package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallFiles is a tree of 20,000 files of 1 KiB in 200 directories.
func smallFiles() []File {
	body := strings.Repeat("0123456789abcde\n", 64)
	var files []File
	for d := range 200 {
		files = append(files, dir(fmt.Sprintf("dir%03d", d)))
		for i := range 100 {
			files = append(files, reg(fmt.Sprintf("dir%03d/file%02d.txt", d, i), body))
		}
	}
	return files
}

func benchTree(b *testing.B) string {
	b.Helper()
	tree := b.TempDir()
	if err := Create(context.Background(), tree, all(smallFiles()...), UnpackOptions{}); err != nil {
		b.Fatal(err)
	}
	return tree
}

// fresh makes an empty directory for each turn. Nothing is removed before the
// end: ext4 is slow to hand out the numbers of files deleted a moment ago.
func fresh(b *testing.B, fn func(dir string)) {
	b.Helper()
	for b.Loop() {
		b.StopTimer()
		d, err := os.MkdirTemp(b.TempDir(), "")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		fn(d)
	}
}

func BenchmarkUnpack20000(b *testing.B) {
	data, _ := tarOf(b, all(smallFiles()...))
	fresh(b, func(d string) {
		if _, err := Unpack(context.Background(), bytes.NewReader(data), d, UnpackOptions{}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkBuild20000(b *testing.B) {
	tree := benchTree(b)
	fresh(b, func(d string) {
		if _, err := Build(context.Background(), d, WalkUpper(tree), UnpackOptions{}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkWalk20000(b *testing.B) {
	tree := benchTree(b)
	for b.Loop() {
		for _, err := range WalkUpper(tree) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkDigest20000(b *testing.B) {
	tree := benchTree(b)
	for b.Loop() {
		if _, err := WriteTar(context.Background(), io.Discard, WalkUpper(tree)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDigestOfThreeFiles(b *testing.B) {
	tree := b.TempDir()
	if err := Create(context.Background(), tree, sorted(reg("a", "1"), dir("b"), reg("b/c", "2")), UnpackOptions{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := WriteTar(context.Background(), io.Discard, WalkUpper(tree)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuildOneLargeFile(b *testing.B) {
	tree := b.TempDir()
	f := entry("large", unix.S_IFREG|0o644)
	f.Size = 256 << 20
	f.Open = func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(xs{}, f.Size)), nil }
	if err := Create(context.Background(), tree, all(f), UnpackOptions{}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(f.Size)
	fresh(b, func(d string) {
		if _, err := Build(context.Background(), d, WalkUpper(tree), UnpackOptions{}); err != nil {
			b.Fatal(err)
		}
	})
}
