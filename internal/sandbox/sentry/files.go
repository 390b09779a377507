package sentry

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/cgroup2fs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/devpts"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/mqfs"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/proc"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/sys"
	"gvisor.dev/gvisor/pkg/sentry/vfs"

	"den/internal/sandbox"
)

// files reads and writes the files of a sandbox as the payload sees them. Whatever
// the payload does to them meanwhile, paths lead nowhere else: the sentry's
// file systems are all there is. What is read or written is a file whose kind was looked at.
type files struct {
	b    *box
	ctx  context.Context
	root vfs.VirtualDentry
}

// openFiles begins an operation; done ends it.
func (b *box) openFiles() *files {
	root := b.mounts.Root(b.ctx)
	return &files{b, vfs.WithRoot(b.ctx, root), root}
}

func (f *files) done() { f.root.DecRef(f.ctx) }

// path names a file. A link at its end is followed only if a slash comes after it.
func (f *files) path(name string) *vfs.PathOperation { return at(f.root, name) }

// in names an entry of a directory, or the directory itself if name is empty.
func (f *files) in(dir vfs.VirtualDentry, name string) *vfs.PathOperation {
	return &vfs.PathOperation{Root: f.root, Start: dir, Path: fspath.Parse(name)}
}

// find returns a file, which the caller releases.
func (f *files) find(p *vfs.PathOperation) (vfs.VirtualDentry, error) {
	d, err := f.b.k.VFS().GetDentryAt(f.ctx, f.b.root, p, &vfs.GetDentryOptions{})
	return d, asNil(err)
}

func (f *files) stat(p *vfs.PathOperation) (linux.Statx, error) {
	st, err := f.b.k.VFS().StatAt(f.ctx, f.b.root, p, &vfs.StatOptions{Mask: linux.STATX_BASIC_STATS})
	return st, asNil(err)
}

// describe is Filer.Stat.
func (f *files) describe(name string) (*sandbox.FileStat, error) {
	p := f.path(name)
	st, err := f.stat(p)
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	s := &sandbox.FileStat{
		Name: path.Base(path.Clean("/" + name)), Size: int64(st.Size), Mode: sandbox.FileMode(uint32(st.Mode)),
		ModTime: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)),
	}
	if st.Mode&linux.S_IFMT == linux.S_IFLNK {
		if s.LinkTarget, err = f.b.k.VFS().ReadlinkAt(f.ctx, f.b.root, p); err != nil {
			return nil, &os.PathError{Op: "readlink", Path: name, Err: asErrno(err)}
		}
	}
	return s, nil
}

const (
	// maxDepth bounds how deep a tree may be that is read or written.
	maxDepth = 512
	// paxXattr begins the names of PAX records for extended attributes.
	paxXattr = "SCHILY.xattr."
)

// kernelFiles are file systems whose files are made as they are read. Where one is
// mounted below what was asked for, an empty directory stands for it.
var kernelFiles = []string{proc.Name, sys.Name, cgroup2fs.Name, devpts.Name, mqfs.Name}

// archive is Filer.ReadTar.
func (f *files) archive(name, as string, w io.Writer) error {
	d, err := f.find(f.path(name))
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer d.DecRef(f.ctx)
	bw := bufio.NewWriterSize(w, 1<<18)
	a := &archiver{f, tar.NewWriter(bw), map[inode]string{}, make([]byte, 256<<10)}
	if as = strings.Trim(path.Clean("/"+as), "/"); as == "" {
		as = "."
	}
	err = a.add(d, nil, as, 0)
	if err == nil {
		err = a.tw.Close()
	}
	if err == nil {
		err = bw.Flush()
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// inode tells files with several names apart.
type inode struct {
	fs  *vfs.Filesystem
	ino uint64
}

// An archiver writes a tree as a tar.
type archiver struct {
	*files
	tw    *tar.Writer
	links map[inode]string // files with several names, by their first
	buf   []byte
}

// add writes a file, and what is below it. above is the file system that the directory above it
// is on, nil at the top.
func (a *archiver) add(d vfs.VirtualDentry, above *vfs.Filesystem, name string, depth int) error {
	st, err := a.stat(a.in(d, ""))
	if err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.UID), Gid: int(st.GID), Format: tar.FormatPAX,
		ModTime: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)), PAXRecords: map[string]string{},
	}
	kind := st.Mode & linux.S_IFMT
	if kind != linux.S_IFDIR && st.Nlink > 1 {
		key := inode{d.Mount().Filesystem(), st.Ino}
		if first, ok := a.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return a.tw.WriteHeader(h)
		}
		a.links[key] = name
	}
	switch kind {
	case linux.S_IFREG:
		return a.file(d, h, int64(st.Size))
	case linux.S_IFDIR:
		return a.dir(d, above, h, depth)
	case linux.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = a.b.k.VFS().ReadlinkAt(a.ctx, a.b.root, a.in(d, "")); err != nil {
			return &os.PathError{Op: "readlink", Path: name, Err: asErrno(err)}
		}
	case linux.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case linux.S_IFCHR, linux.S_IFBLK:
		if h.Typeflag = tar.TypeChar; kind == linux.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(st.RdevMajor), int64(st.RdevMinor)
	default: // a socket, which no tar can hold
		return nil
	}
	return a.tw.WriteHeader(h)
}

// file writes a regular file; one that changes meanwhile has the size that it had.
func (a *archiver) file(d vfs.VirtualDentry, h *tar.Header, size int64) error {
	f, err := a.b.k.VFS().OpenAt(a.ctx, a.b.root, a.in(d, ""), &vfs.OpenOptions{Flags: linux.O_RDONLY | linux.O_NONBLOCK})
	if err != nil {
		return &os.PathError{Op: "open", Path: h.Name, Err: asErrno(err)}
	}
	defer f.DecRef(a.ctx)
	h.Typeflag, h.Size = tar.TypeReg, size
	a.xattrs(d, h)
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{a.tw}, io.LimitReader(file{a.ctx, f}, size), a.buf)
	for clear(a.buf); err == nil && n < size; {
		var m int
		m, err = a.tw.Write(a.buf[:min(size-n, int64(len(a.buf)))])
		n += int64(m)
	}
	if err != nil {
		return &os.PathError{Op: "read", Path: h.Name, Err: err}
	}
	return nil
}

func (a *archiver) dir(d vfs.VirtualDentry, above *vfs.Filesystem, h *tar.Header, depth int) error {
	name := h.Name
	h.Typeflag, h.Name = tar.TypeDir, name+"/"
	a.xattrs(d, h)
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	own := d.Mount().Filesystem()
	if above != nil && above != own && slices.Contains(kernelFiles, own.FilesystemType().Name()) {
		return nil
	}
	if depth >= maxDepth {
		return fmt.Errorf("%.200s: more than %d directories deep", name, maxDepth)
	}
	names, err := a.names(d)
	if err != nil {
		return &os.PathError{Op: "read", Path: name, Err: err}
	}
	for _, n := range names {
		member, err := a.find(a.in(d, n))
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: name + "/" + n, Err: err}
		}
		err = a.add(member, own, name+"/"+n, depth+1)
		member.DecRef(a.ctx)
		if err != nil {
			return err
		}
	}
	return nil
}

// names lists a directory, in order.
func (f *files) names(d vfs.VirtualDentry) ([]string, error) {
	dir, err := f.b.k.VFS().OpenAt(f.ctx, f.b.root, f.in(d, ""), &vfs.OpenOptions{Flags: linux.O_RDONLY | linux.O_DIRECTORY})
	if err != nil {
		return nil, asErrno(err)
	}
	defer dir.DecRef(f.ctx)
	var names []string
	err = dir.IterDirents(f.ctx, vfs.IterDirentsCallbackFunc(func(e vfs.Dirent) error {
		if e.Name != "." && e.Name != ".." {
			names = append(names, e.Name)
		}
		return nil
	}))
	slices.Sort(names)
	return names, asNil(err)
}

// xattrs adds the attributes that are the file's own, as far as they can be read.
func (a *archiver) xattrs(d vfs.VirtualDentry, h *tar.Header) {
	v := a.b.k.VFS()
	names, err := v.ListXattrAt(a.ctx, a.b.root, a.in(d, ""), linux.XATTR_LIST_MAX)
	if err != nil {
		return
	}
	for _, name := range names {
		if !sandbox.OwnXattr(name) {
			continue
		}
		if value, err := v.GetXattrAt(a.ctx, a.b.root, a.in(d, ""), &vfs.GetXattrOptions{Name: name, Size: linux.XATTR_SIZE_MAX}); err == nil {
			h.PAXRecords[paxXattr+name] = value
		}
	}
}
