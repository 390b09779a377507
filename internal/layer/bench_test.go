package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
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
	for _, f := range forms() {
		b.Run(f.String(), func(b *testing.B) {
			fresh(b, func(d string) {
				if _, err := Unpack(context.Background(), bytes.NewReader(data), f.at(b, filepath.Join(d, "tree")), f.with(UnpackOptions{})); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkUnpackLayer unpacks the layer tar that DEN_BENCH_LAYER names.
func BenchmarkUnpackLayer(b *testing.B) {
	data, err := os.ReadFile(os.Getenv("DEN_BENCH_LAYER"))
	if err != nil {
		b.Skip("DEN_BENCH_LAYER names no layer tar")
	}
	for _, f := range forms() {
		b.Run(f.String(), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			start := cpuTime()
			fresh(b, func(d string) {
				if _, err := Unpack(context.Background(), bytes.NewReader(data), f.at(b, filepath.Join(d, "tree")), f.with(UnpackOptions{})); err != nil {
					b.Fatal(err)
				}
			})
			b.ReportMetric((cpuTime()-start).Seconds()/float64(b.N), "cpu-s/op")
		})
	}
	b.Run("digest only", func(b *testing.B) { // what every form pays
		start := cpuTime()
		for b.Loop() {
			if _, _, err := oci.Copy(io.Discard, bytes.NewReader(data)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((cpuTime()-start).Seconds()/float64(b.N), "cpu-s/op")
	})
}

// BenchmarkStepLayer makes the tree of what a step wrote, in canonical order, and names it, of the
// layer tar that DEN_BENCH_LAYER names.
func BenchmarkStepLayer(b *testing.B) {
	data, err := os.ReadFile(os.Getenv("DEN_BENCH_LAYER"))
	if err != nil {
		b.Skip("DEN_BENCH_LAYER names no layer tar")
	}
	ctx, image := context.Background(), form{image: true}
	tree := image.new(b)
	if _, err := Unpack(ctx, bytes.NewReader(data), tree, image.with(UnpackOptions{})); err != nil {
		b.Fatal(err)
	}
	data, _ = tarOf(b, WalkUpper(tree))
	for _, way := range []struct {
		name string
		run  func(r io.Reader, tree string, o UnpackOptions) error
	}{
		{"unpack and walk", func(r io.Reader, tree string, o UnpackOptions) error {
			if _, err := Unpack(ctx, r, tree, o); err != nil {
				return err
			}
			_, err := WriteTar(ctx, io.Discard, WalkUpper(tree))
			return err
		}},
		{"build", func(r io.Reader, tree string, o UnpackOptions) error {
			_, err := BuildTar(ctx, tree, r, o)
			return err
		}},
		{"create", func(r io.Reader, tree string, o UnpackOptions) error { return CreateTar(ctx, tree, r, o) }},
	} {
		b.Run(way.name, func(b *testing.B) {
			start := cpuTime()
			fresh(b, func(d string) {
				if err := way.run(bytes.NewReader(data), filepath.Join(d, "tree"), image.with(UnpackOptions{})); err != nil {
					b.Fatal(err)
				}
			})
			b.ReportMetric((cpuTime()-start).Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkDigestOfImage20000(b *testing.B) {
	f := form{image: true}
	tree := f.new(b)
	if err := Create(context.Background(), tree, all(smallFiles()...), f.with(UnpackOptions{})); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := WriteTar(context.Background(), io.Discard, WalkUpper(tree)); err != nil {
			b.Fatal(err)
		}
	}
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
