package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// A Reader reads the entries of a layer tar, which is hostile: names that
// leave the root, hard links out of it or to directories' names, numbers out
// of range, unknown types, attributes without end and whiteouts of "." are
// errors of the class errdefs.ErrInvalidArgument. Entries come in the tar's
// own order, and the same path may come again. PAX, GNU long names and sparse
// files are understood; global PAX headers and AUFS's own files are left out.
type Reader struct {
	tr      *tar.Reader
	archive bool
	sparse  bool
	holes   int64 // bytes that sparse files may still claim
}

// maxSparse bounds what the sparse files of one layer add up to: their size
// costs the sender nothing.
const maxSparse = 64 << 30

// NewReader reads an uncompressed layer tar from r.
func NewReader(r io.Reader) *Reader {
	return &Reader{tr: tar.NewReader(r), holes: maxSparse}
}

// NewArchiveReader reads a user's archive, in which names that begin with
// ".wh." mean nothing special.
func NewArchiveReader(r io.Reader) *Reader {
	return &Reader{tr: tar.NewReader(r), archive: true, holes: maxSparse}
}

// Next returns the next entry, io.EOF after the last. A whiteout comes as an
// entry with Whiteout and the path that it removes; the marker of an opaque
// directory as one with Opaque, the directory's path and no mode.
func (r *Reader) Next() (*oci.Entry, error) {
	for {
		h, err := r.tr.Next()
		if err != nil {
			if errors.Is(err, tar.ErrHeader) {
				return nil, invalid("tar header: %v", err)
			}
			return nil, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, err := r.entry(h)
		if err != nil {
			return nil, fmt.Errorf("tar entry %.200q: %w", h.Name, err)
		}
		if e != nil {
			return e, nil
		}
	}
}

// Read reads the content of the present entry.
func (r *Reader) Read(p []byte) (int, error) { return r.tr.Read(p) }

// All yields the remaining entries. A file's content must be read before the
// next one is asked for.
func (r *Reader) All() iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		for {
			e, err := r.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(File{}, err)
				return
			}
			if !yield(File{Entry: *e, Open: func() (io.ReadCloser, error) { return io.NopCloser(r), nil }}, nil) {
				return
			}
		}
	}
}

// entry validates one header; nil means that it is to be left out.
func (r *Reader) entry(h *tar.Header) (*oci.Entry, error) {
	p, err := cleanPath(h.Name)
	if err != nil {
		return nil, err
	}
	if !r.archive && strings.Contains(p, whiteoutPrefix) {
		if e, done, err := whiteout(p); done {
			return e, err
		}
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return nil, invalid("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	e := &oci.Entry{Path: p, UID: uint32(h.Uid), GID: uint32(h.Gid), ModTime: h.ModTime}
	if err := r.kind(e, h); err != nil {
		return nil, err
	}
	e.Mode |= uint32(h.Mode) & 0o7777
	if p == "." && e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, invalid("the root can only be a directory")
	}
	if !e.Hardlink {
		e.Xattrs, err = paxXattrs(h.PAXRecords)
	}
	return e, err
}

// kind sets what depends on the entry's type.
func (r *Reader) kind(e *oci.Entry, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Mode, e.Size = unix.S_IFREG, h.Size
		return r.checkSize(h)
	case tar.TypeDir:
		e.Mode = unix.S_IFDIR
	case tar.TypeSymlink:
		e.Mode, e.Link = unix.S_IFLNK, h.Linkname
		if e.Link == "" || len(e.Link) > maxTarget || strings.IndexByte(e.Link, 0) >= 0 {
			return invalid("target of symbolic link is %d bytes long or holds a zero byte", len(e.Link))
		}
	case tar.TypeLink:
		target, err := cleanPath(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		if target == "." || target == e.Path {
			return invalid("hard link to %.200q", h.Linkname)
		}
		e.Mode, e.Hardlink, e.Link = unix.S_IFREG, true, target
	case tar.TypeChar, tar.TypeBlock:
		return device(e, h)
	case tar.TypeFifo:
		e.Mode = unix.S_IFIFO
	default:
		return invalid("type %q is not supported", h.Typeflag)
	}
	return nil
}

func (r *Reader) checkSize(h *tar.Header) error {
	if h.Size < 0 {
		return invalid("size %d", h.Size)
	}
	r.sparse = h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != ""
	if !r.sparse {
		return nil
	}
	if r.holes -= h.Size; r.holes < 0 {
		return invalid("sparse files of more than %d GiB", int64(maxSparse)>>30)
	}
	return nil
}

func device(e *oci.Entry, h *tar.Header) error {
	e.Mode = unix.S_IFCHR
	if h.Typeflag == tar.TypeBlock {
		e.Mode = unix.S_IFBLK
	}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return invalid("device %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
		return invalid("device 0:0 means a whiteout on disk")
	}
	e.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	return nil
}

// whiteout decodes names with the whiteout prefix (OCI image-spec, layer.md);
// done says that it is no ordinary entry.
func whiteout(p string) (e *oci.Entry, done bool, err error) {
	dir, base := dirOf(p), baseOf(p)
	for part := range strings.SplitSeq(dir, "/") {
		switch {
		case strings.HasPrefix(part, whiteoutMeta):
			return nil, true, nil // AUFS kept its hard links there
		case strings.HasPrefix(part, whiteoutPrefix):
			return nil, true, invalid("a whiteout is not a directory")
		}
	}
	removed, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !ok:
		return nil, false, nil
	case base == opaqueName:
		if dir == "" {
			dir = "."
		}
		return &oci.Entry{Path: dir, Opaque: true}, true, nil
	case strings.HasPrefix(base, whiteoutMeta):
		return nil, true, nil
	case removed == "" || removed == "." || removed == "..":
		return nil, true, invalid("whiteout of %q", removed)
	}
	return &oci.Entry{Path: joinPath(dir, removed), Whiteout: true}, true, nil
}
