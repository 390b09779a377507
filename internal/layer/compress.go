package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compression names how a layer's tar is packed.
type Compression string

// The compressions that Decompress recognises; Compress writes the first three.
const (
	Uncompressed Compression = ""
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
	Bzip2        Compression = "bzip2"
	XZ           Compression = "xz"
)

// DefaultLevel lets Compress choose.
const DefaultLevel = -1

// maxWindow bounds what a decoder keeps in memory of the past: what zstd and
// xz allow without being told otherwise on their command lines is 128 MiB.
const maxWindow = 128 << 20

// sniffed is enough of a stream to tell what it is.
const sniffed = 16

// Decompress looks at the first bytes of r and returns what unpacks the rest.
// A stream of no known format comes back as it is: it may be a plain tar.
// Closing the result does not close r.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(sniffed)
	if err != nil && err != io.EOF {
		return nil, Uncompressed, fmt.Errorf("decompress: %w", err)
	}
	c := sniff(head)
	rc, err := decoder(b, c)
	if err != nil {
		return nil, c, fmt.Errorf("decompress %s: %w", c, err)
	}
	return rc, c, nil
}

func sniff(head []byte) Compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), skippable(head):
		return Zstd
	case len(head) >= 10 && bytes.HasPrefix(head, []byte("BZh")) && head[3] >= '1' && head[3] <= '9' &&
		(bytes.Equal(head[4:10], []byte("1AY&SY")) || bytes.Equal(head[4:10], []byte{0x17, 0x72, 0x45, 0x38, 0x50, 0x90})):
		return Bzip2
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return XZ
	}
	return Uncompressed
}

// skippable recognises a zstd skippable frame (RFC 8878, 3.1.2), with which
// zstd:chunked and seekable streams may begin. A tar cannot begin so: its
// first bytes would be an entry's name.
func skippable(head []byte) bool {
	return len(head) >= 8 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

func decoder(r *bufio.Reader, c Compression) (io.ReadCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewReader(r)
	case Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(r)), nil
	case XZ:
		x, err := xz.NewReader(newXZGuard(r))
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	}
	return io.NopCloser(r), nil
}

// Compress returns a writer that packs what is written to it for w. The same
// bytes at the same level give the same result: no name, no time. Levels are
// gzip's 0-9 and zstd's 1-22, or DefaultLevel. Close ends the stream and does
// not close w.
func Compress(w io.Writer, c Compression, level int) (io.WriteCloser, error) {
	switch c {
	case Uncompressed:
		return nopCloser{w}, nil
	case Gzip:
		if level < gzip.DefaultCompression || level > gzip.BestCompression {
			return nil, invalid("gzip level %d is not one of 0 to 9", level)
		}
		return gzip.NewWriterLevel(w, level)
	case Zstd:
		if level == DefaultLevel {
			level = 3
		}
		if level < 1 || level > 22 {
			return nil, invalid("zstd level %d is not one of 1 to 22", level)
		}
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(2))
	}
	return nil, invalid("compression %q is not one of gzip, zstd", string(c))
}

type nopCloser struct{ io.Writer }

// Close does nothing.
func (nopCloser) Close() error { return nil }
