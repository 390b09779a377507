package sentry

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// What the overlay of the sentry writes in its upper tree.
const (
	opaqueXattr   = "user.overlay.opaque"
	overlayPrefix = "user.overlay."
	// And how a layer says it (OCI image-spec, layer.md).
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// exporter writes the upper tree as a layer. What the payload did is told the same way
// whatever came in between: names in order, whole seconds, and only what
// differs from the layers below. The overlay leaves a whiteout for every file that
// was made and removed, and marks every new directory opaque.
type exporter struct {
	b     *box
	tw    *tar.Writer
	links map[uint64]string
	buf   []byte
}

// exportSoFar writes what was changed so far, while the payload goes on.
func (b *box) exportSoFar(w io.Writer) error {
	switch {
	case b.r.Root.BindFD >= 0:
		return &remoteError{"the root is a directory of its own, in which changes cannot be told", unix.EOPNOTSUPP}
	case !b.r.Root.Writable:
		return tar.NewWriter(w).Close()
	}
	return b.exportLayer(w)
}

// exportLayer writes the layer to w.
func (b *box) exportLayer(w io.Writer) error {
	bw := bufio.NewWriterSize(w, 64<<10) // most of a large file passes it by
	e := &exporter{b: b, tw: tar.NewWriter(bw), links: map[uint64]string{}, buf: make([]byte, 256<<10)}
	if err := e.dir(""); err != nil {
		return err
	}
	if err := e.tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

// dir writes the content of a directory.
func (e *exporter) dir(dir string) error {
	names, err := e.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := e.entry(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) names(dir string) ([]string, error) {
	f, err := e.b.k.VFS().OpenAt(e.b.ctx, e.b.root, at(e.b.upper, dir), &vfs.OpenOptions{Flags: linux.O_RDONLY | linux.O_DIRECTORY})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: asErrno(err)}
	}
	defer f.DecRef(e.b.ctx)
	var names []string
	err = f.IterDirents(e.b.ctx, vfs.IterDirentsCallbackFunc(func(d vfs.Dirent) error {
		if d.Name != "." && d.Name != ".." {
			names = append(names, d.Name)
		}
		return nil
	}))
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: dir, Err: asErrno(err)}
	}
	slices.Sort(names)
	return names, nil
}

// entry writes one file, and what is below it.
func (e *exporter) entry(p string) error {
	st, err := e.b.k.VFS().StatAt(e.b.ctx, e.b.root, at(e.b.upper, p), &vfs.StatOptions{Mask: linux.STATX_BASIC_STATS})
	if err != nil {
		return &os.PathError{Op: "stat", Path: p, Err: asErrno(err)}
	}
	kind := uint32(st.Mode) & unix.S_IFMT
	switch {
	case kind == unix.S_IFSOCK: // no tar can hold one
		return nil
	case isWhiteout(st):
		if lower, err := e.below(p); lower == nil || err != nil {
			return err
		}
		return e.header(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(p), whiteoutPrefix+path.Base(p))}, p)
	}
	h := &tar.Header{Name: p, Mode: int64(st.Mode & 0o7777), Uid: int(st.UID), Gid: int(st.GID), ModTime: time.Unix(st.Mtime.Sec, 0)}
	if st.Nlink > 1 && kind != unix.S_IFDIR {
		if first, ok := e.links[st.Ino]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return e.header(h, p)
		}
		e.links[st.Ino] = p
	}
	opaque, err := e.xattrs(h, p)
	if err != nil {
		return err
	}
	switch kind {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, int64(st.Size)
		return e.file(h, p)
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
		return e.directory(h, st, p, opaque)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = e.b.k.VFS().ReadlinkAt(e.b.ctx, e.b.root, at(e.b.upper, p)); err != nil {
			return &os.PathError{Op: "readlink", Path: p, Err: asErrno(err)}
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(st.RdevMajor), int64(st.RdevMinor)
		if kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	}
	return e.header(h, p)
}

// isWhiteout says that st is the character device 0:0.
func isWhiteout(st linux.Statx) bool {
	return st.Mode&linux.S_IFMT == linux.S_IFCHR && st.RdevMajor == 0 && st.RdevMinor == 0
}

func (e *exporter) header(h *tar.Header, p string) error {
	h.Format = tar.FormatPAX
	if err := e.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%.200s: %w", p, err)
	}
	return nil
}

func (e *exporter) file(h *tar.Header, p string) error {
	f, err := e.b.k.VFS().OpenAt(e.b.ctx, e.b.root, at(e.b.upper, p), &vfs.OpenOptions{Flags: linux.O_RDONLY})
	if err != nil {
		return &os.PathError{Op: "open", Path: p, Err: asErrno(err)}
	}
	defer f.DecRef(e.b.ctx)
	if err := e.header(h, p); err != nil {
		return err
	}
	// Only the reader: io.Copy would otherwise take another way.
	if _, err := io.CopyBuffer(struct{ io.Writer }{e.tw}, file{e.b.ctx, f}, e.buf); err != nil {
		return fmt.Errorf("%.200s: %w", p, err)
	}
	return nil
}

func (e *exporter) directory(h *tar.Header, st linux.Statx, p string, opaque bool) error {
	lower, err := e.below(p)
	if err != nil {
		return err
	}
	// Where something was removed, a new directory hides it, as Linux has it, whatever it was.
	opaque = opaque && lower != nil
	if !opaque && lower != nil && st.Mtime == st.Ctime {
		copied, err := e.onlyCopied(p)
		if err != nil {
			return err
		}
		if copied {
			h.ModTime = time.Unix(lower.Mtime.Sec, 0)
		}
	}
	if err := e.header(h, p); err != nil {
		return err
	}
	if opaque {
		if err := e.header(&tar.Header{Typeflag: tar.TypeReg, Name: p + "/" + opaqueName}, p); err != nil {
			return err
		}
	}
	return e.dir(p)
}

// onlyCopied reports whether all that is in a directory of the upper tree was in it
// before. Then its time has changed because the overlay copied files into it, which
// Linux undoes and the sentry does not.
func (e *exporter) onlyCopied(dir string) (bool, error) {
	names, err := e.names(dir)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		p := path.Join(dir, name)
		st, err := e.b.k.VFS().StatAt(e.b.ctx, e.b.root, at(e.b.upper, p), &vfs.StatOptions{Mask: linux.STATX_BASIC_STATS})
		if err != nil {
			return false, &os.PathError{Op: "stat", Path: p, Err: asErrno(err)}
		}
		lower, err := e.below(p)
		if err != nil || lower == nil || isWhiteout(st) {
			return false, err
		}
	}
	return true, nil
}

// xattrs puts the attributes into h and says whether p is opaque.
func (e *exporter) xattrs(h *tar.Header, p string) (opaque bool, err error) {
	v := e.b.k.VFS()
	names, err := v.ListXattrAt(e.b.ctx, e.b.root, at(e.b.upper, p), linux.XATTR_LIST_MAX)
	if errnoOf(err) == unix.EOPNOTSUPP {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "listxattr", Path: p, Err: asErrno(err)}
	}
	for _, name := range names {
		value, err := v.GetXattrAt(e.b.ctx, e.b.root, at(e.b.upper, p), &vfs.GetXattrOptions{Name: name, Size: linux.XATTR_SIZE_MAX})
		if err != nil {
			return false, &os.PathError{Op: "getxattr " + name, Path: p, Err: asErrno(err)}
		}
		switch {
		case name == opaqueXattr:
			opaque = value == "y"
		case strings.HasPrefix(name, overlayPrefix):
		default:
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
	}
	return opaque, nil
}

// below looks p up in the layers below; nil if they do not have it.
func (e *exporter) below(p string) (*linux.Statx, error) {
	v := e.b.k.VFS()
	parts := strings.Split(p, "/")
layers:
	for _, l := range e.b.lowers {
		for i := range parts {
			st, err := v.StatAt(e.b.ctx, e.b.root, at(l, strings.Join(parts[:i+1], "/")), &vfs.StatOptions{Mask: linux.STATX_BASIC_STATS})
			if no := errnoOf(err); no == unix.ENOENT || no == unix.ENOTDIR {
				continue layers
			}
			switch {
			case err != nil:
				return nil, &os.PathError{Op: "look below for", Path: p, Err: asErrno(err)}
			case isWhiteout(st):
				return nil, nil //nolint:nilnil // it is removed there
			case i == len(parts)-1:
				return &st, nil
			case st.Mode&linux.S_IFMT != linux.S_IFDIR: // it hides what is below
				return nil, nil //nolint:nilnil // there is nothing
			}
		}
	}
	return nil, nil //nolint:nilnil // there is nothing
}
