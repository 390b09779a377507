package gofer

import (
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"

	"den/internal/sys"
)

// wanted is the file that a client asks for: without an owner it is the
// process's, which in the sandbox is root.
func (t *Tree) wanted(kind uint32, mode linux.FileMode, uid lisafs.UID, gid lisafs.GID) sys.Inode {
	want := sys.Inode{Mode: kind | uint32(mode)&0o7777}
	if !t.recorded {
		want.UID, want.GID = t.self.UID, t.self.GID
	}
	if uid.Ok() {
		want.UID = uint32(uid)
	}
	if gid.Ok() {
		want.GID = uint32(gid)
	}
	return want
}

// firstMode is the mode to make a file with; it is never more than wanted.
func (t *Tree) firstMode(want sys.Inode) uint32 {
	if t.recorded || isDevice(want) {
		return want.HostMode()
	}
	return want.Mode & 0o7777 &^ (unix.S_ISUID | unix.S_ISGID) // they come with the owner
}

// making refuses what cannot be made, counts a descriptor and calls create,
// again if a mode of the directory's forbade it that can be widened.
func (h *handle) making(name string, create func() error) error {
	if h.t.readOnly {
		return unix.EROFS
	}
	if len(name) > unix.NAME_MAX {
		return unix.ENAMETOOLONG
	}
	if err := h.t.reserve(); err != nil {
		return err
	}
	err := h.admitted(create)
	if err != nil {
		h.t.release()
	}
	return err
}

// made finishes what was just made under name: owner, mode and handle. If that
// fails the name is removed again.
func (h *handle) made(name string, want sys.Inode) (*lisafs.ControlFD, lisafs.Statx, error) {
	fd, f, err := h.t.open(h.fd, name)
	if err == nil {
		err = h.t.become(fd, place{h.fd, name}, &f, want)
		if err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		h.undo(name, want.Mode)
		h.t.release()
		return nil, lisafs.Statx{}, err
	}
	return h.child(fd, name, &f).FD(), f.statx(), nil
}

func (h *handle) undo(name string, mode uint32) {
	flags := 0
	if kind(mode) == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	_ = unix.Unlinkat(h.fd, name, flags)
}

// OpenCreate implements lisafs.ControlFDImpl.
func (h *handle) OpenCreate(mode linux.FileMode, uid lisafs.UID, gid lisafs.GID, name string, flags uint32) (*lisafs.ControlFD, lisafs.Statx, *lisafs.OpenFD, int, error) {
	want := h.t.wanted(unix.S_IFREG, mode, uid, gid)
	fd := -1
	err := h.making(name, func() (err error) {
		if err := h.t.reserve(); err != nil { // for the open file beside the handle
			return err
		}
		fd, err = openat(h.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|int(flags&unix.O_ACCMODE), h.t.firstMode(want))
		if err != nil {
			h.t.release()
		}
		return err
	})
	if err != nil {
		return nil, lisafs.Statx{}, nil, -1, err
	}
	h2, st, err := h.createdFile(fd, name, want)
	if err != nil {
		_ = unix.Close(fd)
		h.undo(name, want.Mode)
		h.t.release()
		h.t.release()
		return nil, lisafs.Statx{}, nil, -1, err
	}
	return h2.FD(), st, h2.opened(fd, flags).FD(), donation(fd), nil
}

// createdFile is made for a file that is open already.
func (h *handle) createdFile(fd int, name string, want sys.Inode) (*handle, lisafs.Statx, error) {
	f := file{}
	if err := statx(fd, &f.host); err != nil {
		return nil, lisafs.Statx{}, err
	}
	f.is = h.t.natural(&f.host)
	if err := h.t.become(fd, place{h.fd, name}, &f, want); err != nil {
		return nil, lisafs.Statx{}, err
	}
	// The file that was made, whatever its name leads to by now.
	ofd, err := h.t.reopen(fd, unix.O_PATH)
	if err != nil {
		return nil, lisafs.Statx{}, err
	}
	return h.child(ofd, name, &f), f.statx(), nil
}

// donation is a descriptor for the client, which reads and writes by it
// without asking; without one it asks.
func donation(fd int) int {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return dup
}

// Mkdir implements lisafs.ControlFDImpl.
func (h *handle) Mkdir(mode linux.FileMode, uid lisafs.UID, gid lisafs.GID, name string) (*lisafs.ControlFD, lisafs.Statx, error) {
	want := h.t.wanted(unix.S_IFDIR, mode, uid, gid)
	if err := h.making(name, func() error { return unix.Mkdirat(h.fd, name, h.t.firstMode(want)) }); err != nil {
		return nil, lisafs.Statx{}, err
	}
	return h.made(name, want)
}

// Mknod implements lisafs.ControlFDImpl. Devices become files with a record,
// whatever this process may do: a device node on disk would be one for others
// on the machine, too. A socket that is not bound here is the client's own
// affair; it keeps one in memory when it gets EPERM.
func (h *handle) Mknod(mode linux.FileMode, uid lisafs.UID, gid lisafs.GID, name string, minor, major uint32) (*lisafs.ControlFD, lisafs.Statx, error) {
	want := h.t.wanted(uint32(mode.FileType()), mode, uid, gid)
	create := func() error {
		return unix.Mknodat(h.fd, name, unix.S_IFREG|h.t.firstMode(want), 0)
	}
	standIn := false
	switch want.Mode & unix.S_IFMT {
	case 0:
		want.Mode |= unix.S_IFREG
	case unix.S_IFREG:
	case unix.S_IFIFO:
		create = func() error { return unix.Mknodat(h.fd, name, unix.S_IFIFO|h.t.firstMode(want), 0) }
	case unix.S_IFCHR, unix.S_IFBLK:
		if major >= 1<<12 || minor >= 1<<20 {
			return nil, lisafs.Statx{}, unix.EINVAL
		}
		want.Rdev, standIn = unix.Mkdev(major, minor), true
	default:
		return nil, lisafs.Statx{}, unix.EPERM
	}
	if err := h.making(name, create); err != nil {
		return nil, lisafs.Statx{}, err
	}
	if standIn {
		h.t.markStandIn(h.fd)
	}
	return h.made(name, want)
}

// Symlink implements lisafs.ControlFDImpl.
func (h *handle) Symlink(name, target string, uid lisafs.UID, gid lisafs.GID) (*lisafs.ControlFD, lisafs.Statx, error) {
	want := h.t.wanted(unix.S_IFLNK, 0o777, uid, gid)
	if err := h.making(name, func() error { return unix.Symlinkat(target, h.fd, name) }); err != nil {
		return nil, lisafs.Statx{}, err
	}
	return h.made(name, want)
}

// Link implements lisafs.ControlFDImpl.
func (h *handle) Link(dir lisafs.ControlFDImpl, name string) (*lisafs.ControlFD, lisafs.Statx, error) {
	d := dir.(*handle)
	was, err := h.look()
	if err != nil {
		return nil, lisafs.Statx{}, err
	}
	// By the descriptor: the name may lead elsewhere by now. AT_EMPTY_PATH
	// would need CAP_DAC_READ_SEARCH.
	err = d.making(name, func() error {
		return unix.Linkat(unix.AT_FDCWD, procPath(h.fd), d.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return nil, lisafs.Statx{}, err
	}
	d.t.moved(place{d.fd, name}, &was)
	fd, f, err := d.t.open(d.fd, name)
	if err != nil {
		d.t.release()
		return nil, lisafs.Statx{}, err
	}
	return d.child(fd, name, &f).FD(), f.statx(), nil
}
