package gofer

import (
	"math"
	"path"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"

	"den/internal/sys"
)

// A handle is a file that the client has walked to.
type handle struct {
	lisafs.ControlFD
	t *Tree
	// fd is open with O_PATH.
	fd int
	// kind is the type on disk; ControlFD knows the one in the sandbox.
	kind uint32
}

var _ lisafs.ControlFDImpl = (*handle)(nil)

// FD implements lisafs.ControlFDImpl.
func (h *handle) FD() *lisafs.ControlFD {
	if h == nil {
		return nil
	}
	return &h.ControlFD
}

// Close implements lisafs.ControlFDImpl.
func (h *handle) Close() {
	_ = unix.Close(h.fd)
	h.t.release()
}

// child makes a handle of fd, which the caller found in h under name and has
// reserved a place for. It takes fd over.
func (h *handle) child(fd int, name string, f *file) *handle {
	both := &struct { // one allocation, as most nodes have one handle
		node lisafs.Node
		h    handle
	}{h: handle{t: h.t, fd: fd, kind: kind(f.host.Mode)}}
	c, node := &both.h, &both.node
	parent := h.Node()
	parent.WithChildrenMu(func() {
		if known := parent.LookupChildLocked(name); known != nil {
			known.IncRef()
			c, node = &handle{t: h.t, fd: fd, kind: kind(f.host.Mode)}, known
			return
		}
		node.InitLocked(name, parent)
	})
	c.Init(h.Conn(), node, linux.FileMode(f.is.Mode), c)
	return c
}

// place finds the directory of the handle's file again. done closes it.
func (h *handle) place() (p place, done func()) {
	full := h.Node().FilePath()
	if full == "/" {
		return nowhere(), func() {}
	}
	dir, name := path.Split(full)
	fd, err := sys.OpenDirBeneath(int(h.t.root.Fd()), "."+dir)
	if err != nil {
		return nowhere(), func() {}
	}
	var here unix.Stat_t
	var st unix.Statx_t
	if sys.LstatAt(fd, name, &here) != nil || statx(h.fd, &st) != nil ||
		here.Ino != st.Ino || here.Dev != unix.Mkdev(st.Dev_major, st.Dev_minor) {
		_ = unix.Close(fd)
		return nowhere(), func() {}
	}
	return place{fd, name}, func() { _ = unix.Close(fd) }
}

func (h *handle) isRoot() bool { return h.Node().FilePath() == "/" }

// look describes the handle's file. Its directory is only looked for when
// that may know more.
func (h *handle) look() (file, error) {
	p, done := nowhere(), func() {}
	if !attributed(h.kind) {
		if p, done = h.place(); p.dirfd < 0 && h.isRoot() {
			p = h.t.at
		}
	}
	defer done()
	f, err := h.t.look(h.fd, p)
	h.keepType(&f)
	return f, err
}

// keepType holds the type that the client was told first: it panics about a
// file that changes it, as one does whose record is removed from outside.
func (h *handle) keepType(f *file) {
	f.is.Mode = uint32(h.FileType()) | f.is.Mode&^unix.S_IFMT
}

// Stat implements lisafs.ControlFDImpl.
func (h *handle) Stat() (lisafs.Statx, error) {
	f, err := h.look()
	if err != nil {
		return lisafs.Statx{}, err
	}
	return f.statx(), nil
}

// admitted runs try again if it was forbidden by a mode of the tree's own
// that can be widened.
func (h *handle) admitted(try func() error) error {
	err := try()
	if err == unix.EACCES && h.t.admit(h.fd, nowhere()) {
		err = try()
	}
	return err
}

// open opens a name in the handle's directory with O_PATH, and describes it.
func (t *Tree) open(dirfd int, name string) (fd int, f file, err error) {
	fd, err = openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, f, err
	}
	f, err = t.look(fd, place{dirfd, name})
	if err == nil && !served(f.host.Mode) {
		err = unix.EPERM
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, f, err
	}
	return fd, f, nil
}

// Walk implements lisafs.ControlFDImpl.
func (h *handle) Walk(name string) (*lisafs.ControlFD, lisafs.Statx, error) {
	if len(name) > unix.NAME_MAX {
		return nil, lisafs.Statx{}, unix.ENAMETOOLONG
	}
	if err := h.t.reserve(); err != nil {
		return nil, lisafs.Statx{}, err
	}
	var fd int
	var f file
	err := h.admitted(func() (err error) {
		fd, f, err = h.t.open(h.fd, name)
		return err
	})
	if err != nil {
		h.t.release()
		return nil, lisafs.Statx{}, err
	}
	return h.child(fd, name, &f).FD(), f.statx(), nil
}

// WalkStat implements lisafs.ControlFDImpl. Others may rename below h
// meanwhile; each step is from a descriptor and follows no link.
func (h *handle) WalkStat(names lisafs.StringArray, record func(lisafs.Statx)) error {
	if len(names) > 0 && names[0] == "" {
		f, err := h.look()
		if err != nil {
			return err
		}
		record(f.statx())
		names = names[1:]
	}
	if h.IsSymlink() {
		return nil
	}
	dir := h.fd
	defer func() {
		if dir != h.fd {
			_ = unix.Close(dir)
		}
	}()
	for _, name := range names {
		if len(name) > unix.NAME_MAX {
			return unix.ENAMETOOLONG
		}
		fd, f, err := h.t.open(dir, name)
		if err == unix.EACCES && h.t.admit(dir, nowhere()) {
			fd, f, err = h.t.open(dir, name)
		}
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		if dir != h.fd {
			_ = unix.Close(dir)
		}
		dir = fd
		record(f.statx())
		if kind(f.is.Mode) == unix.S_IFLNK {
			return nil
		}
	}
	return nil
}

// StatFS implements lisafs.ControlFDImpl.
func (h *handle) StatFS() (lisafs.StatFS, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(h.fd, &s); err != nil {
		return lisafs.StatFS{}, err
	}
	return lisafs.StatFS{
		Type: uint64(s.Type), BlockSize: int64(s.Bsize), Blocks: s.Blocks, BlocksFree: s.Bfree, BlocksAvailable: s.Bavail,
		Files: s.Files, FilesFree: s.Ffree, NameLength: uint64(s.Namelen),
	}, nil
}

// Readlink implements lisafs.ControlFDImpl.
func (h *handle) Readlink(buffer func(uint32) []byte) (uint16, error) {
	if h.kind != unix.S_IFLNK {
		return 0, unix.EINVAL
	}
	for size := uint32(256); size <= unix.PathMax; size *= 2 {
		n, err := unix.Readlinkat(h.fd, "", buffer(size))
		if err != nil {
			return 0, err
		}
		if uint32(n) < size || size == unix.PathMax {
			return uint16(min(n, math.MaxUint16)), nil
		}
	}
	return 0, unix.ENAMETOOLONG
}

// Renamed implements lisafs.ControlFDImpl: nothing here depends on names.
func (h *handle) Renamed() {}
