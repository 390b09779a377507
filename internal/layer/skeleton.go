package layer

import (
	"context"
	"io"
	"iter"

	"github.com/containerd/errdefs"
)

const DefaultMaxEntries = 8 << 20

func Unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (Applied, error) {
	return Applied{}, errdefs.ErrNotImplemented
}

type Compression string

const (
	Uncompressed Compression = ""
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
	Bzip2        Compression = "bzip2"
	XZ           Compression = "xz"
)

func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	return nil, "", errdefs.ErrNotImplemented
}
func Compress(w io.Writer, c Compression, level int) (io.WriteCloser, error) {
	return nil, errdefs.ErrNotImplemented
}
func WriteTar(ctx context.Context, w io.Writer, files iter.Seq2[File, error]) (Applied, error) {
	return Applied{}, errdefs.ErrNotImplemented
}
func WalkUpper(dir string) iter.Seq2[File, error]    { return WalkStack([]string{dir}) }
func WalkStack(dirs []string) iter.Seq2[File, error] { return func(func(File, error) bool) {} }
func Build(ctx context.Context, dir string, files iter.Seq2[File, error], o UnpackOptions) (Applied, error) {
	return Applied{}, errdefs.ErrNotImplemented
}

// Create is Build without the digest.
func Create(ctx context.Context, dir string, files iter.Seq2[File, error], o UnpackOptions) error {
	return errdefs.ErrNotImplemented
}

// ComparePaths orders paths as a walk meets them: parents first, names in byte order.
func ComparePaths(a, b string) int { return 0 }
