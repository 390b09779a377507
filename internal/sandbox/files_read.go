package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep a tree may be that is read or written: each level is an open file.
const maxDepth = 512

// kernelFiles are file systems whose files the kernel makes as they are read. Where
// one is mounted below what was asked for, an empty directory stands for it.
var kernelFiles = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
	unix.SECURITYFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.BPF_FS_MAGIC, 0x19800202, // mqueue
}

// ReadTar writes a tar of name, whose entries begin with as. Hard links, devices and extended
// attributes are kept, sockets left out as docker does; a file that changes meanwhile has the size that it had.
func (f *Files) ReadTar(ctx context.Context, name, as string, w io.Writer) error {
	fd, err := f.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	a := &archiver{ctx: ctx, tw: tar.NewWriter(w), links: map[inode]string{}}
	as = strings.Trim(path.Clean("/"+as), "/")
	if as == "" {
		as = "."
	}
	if err := a.add(fd, as, 0); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := a.tw.Close(); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// An archiver writes a tree as a tar.
type archiver struct {
	ctx   context.Context
	tw    *tar.Writer
	links map[inode]string // files with several names, by their first
	depth int
}

// add writes the file that the O_PATH descriptor fd is, and what is below it. dev is the
// parent's device, 0 at the top.
func (a *archiver) add(fd int, name string, dev uint64) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Format: tar.FormatPAX,
		ModTime: time.Unix(st.Mtim.Unix()), PAXRecords: map[string]string{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return a.file(fd, h, &st)
	case unix.S_IFDIR:
		return a.dir(fd, h, &st, dev)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		var err error
		if h.Linkname, err = readlink(fd); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		if h.Typeflag = tar.TypeChar; st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return nil
	}
	if a.linked(h, &st) {
		h.Devmajor, h.Devminor = 0, 0
	}
	return a.tw.WriteHeader(h)
}

// linked makes the header one of a hard link if the file was written by another name.
func (a *archiver) linked(h *tar.Header, st *unix.Stat_t) bool {
	if st.Nlink < 2 {
		return false
	}
	first, ok := a.links[inode{st.Dev, st.Ino}]
	if !ok {
		a.links[inode{st.Dev, st.Ino}] = h.Name
		return false
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return true
}

func (a *archiver) file(fd int, h *tar.Header, st *unix.Stat_t) error {
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if a.linked(h, st) {
		return a.tw.WriteHeader(h)
	}
	// A regular file: opening it neither waits nor does anything.
	f, err := os.OpenFile(procPath(fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	readXattrs(fd, h)
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(a.tw, io.LimitReader(&contextReader{a.ctx, f}, h.Size))
	if err != nil {
		return err
	}
	_, err = io.CopyN(a.tw, zeros{}, h.Size-n)
	return err
}

func (a *archiver) dir(fd int, h *tar.Header, st *unix.Stat_t, dev uint64) error {
	h.Typeflag = tar.TypeDir
	name := h.Name
	h.Name += "/"
	readXattrs(fd, h)
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	var sfs unix.Statfs_t
	if dev != 0 && dev != st.Dev && unix.Fstatfs(fd, &sfs) == nil && slices.Contains(kernelFiles, int64(sfs.Type)) {
		return nil
	}
	if a.depth++; a.depth > maxDepth {
		return fmt.Errorf("%.200s: more than %d directories deep", name, maxDepth)
	}
	defer func() { a.depth-- }()
	dirfd, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(dirfd), name)
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, n := range names {
			if err := a.member(dirfd, n, name+"/"+n, st.Dev); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (a *archiver) member(dir int, name, as string, dev uint64) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone meanwhile
	}
	if err != nil {
		return pathError("open", as, err)
	}
	defer unix.Close(fd)
	return a.add(fd, as, dev)
}

// paxXattr begins the names of PAX records for extended attributes (star's, which GNU tar and docker read).
const paxXattr = "SCHILY.xattr."

// readXattrs adds the attributes that are the file's own: not those of a security module
// or of the storage.
func readXattrs(fd int, h *tar.Header) {
	list := make([]byte, 1<<16)
	n, err := unix.Listxattr(procPath(fd), list)
	if err != nil {
		return
	}
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		attr := string(name)
		if !OwnXattr(attr) {
			continue
		}
		value := make([]byte, 1<<16)
		if n, err := unix.Getxattr(procPath(fd), attr, value); err == nil {
			h.PAXRecords[paxXattr+attr] = string(value[:n])
		}
	}
}

// OwnXattr reports whether an extended attribute is a file's own: not one of a security module,
// of the storage or of den.
func OwnXattr(name string) bool {
	return name == "security.capability" ||
		strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && !strings.HasPrefix(name, "user.den.") && !strings.Contains(name, "=")
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
