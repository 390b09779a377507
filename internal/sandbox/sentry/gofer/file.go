package gofer

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/lisafs"

	"den/internal/sys"
)

// A place is a name in a directory; it may be unknown.
type place struct {
	dirfd int // -1: unknown
	name  string
}

func nowhere() place { return place{dirfd: -1} }

// A file is what is on disk and what that is in the sandbox.
type file struct {
	host unix.Statx_t
	is   sys.Inode
	// recorded says that a record made it so, not the disk.
	recorded bool
}

// procPath names a descriptor for the calls that take no O_PATH descriptor.
// The link leads to the file itself, whatever its name leads to by now.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens what fd is open on in another way.
func (t *Tree) reopen(fd, flags int) (int, error) {
	return openat(int(t.proc.Fd()), strconv.Itoa(fd), flags, 0)
}

func openat(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	for {
		if fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC|unix.O_NOCTTY, mode); err != unix.EINTR {
			return fd, err
		}
	}
}

func statx(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
}

// look describes the file that fd is open on and that was found at p.
func (t *Tree) look(fd int, p place) (f file, err error) {
	if err := statx(fd, &f.host); err != nil {
		return f, err
	}
	return f, t.recall(fd, p, &f)
}

// recall finds out what the file of f.host is in the sandbox.
func (t *Tree) recall(fd int, p place, f *file) error {
	f.is = t.natural(&f.host)
	mode := uint32(f.host.Mode)
	if i, ok := t.memory.get(idOf(&f.host)); ok && t.counts(i, &f.host) {
		f.is, f.recorded = i, true
		return nil
	}
	if f.host.Uid != t.self.UID {
		return nil
	}
	if !attributed(mode) {
		return t.recallName(p, mode, f)
	}
	if !t.self.Keeps(mode, f.host.Uid) {
		return nil
	}
	i, ok, err := readRecord(fd, p)
	if ok && t.counts(i, &f.host) {
		f.is, f.recorded = i, true
	}
	return err
}

// counts says whether a record can be the file's. Who may chown records
// nothing but nodes, and believes nothing else: on other rungs a user of a
// container may have written it.
func (t *Tree) counts(i sys.Inode, st *unix.Statx_t) bool {
	same := kind(i.Mode) == kind(st.Mode)
	if !attributed(uint32(st.Mode)) {
		return same && t.recorded
	}
	return i.Fits(uint32(st.Mode), int64(min(st.Size, 1<<62))) && (t.recorded || !same)
}

// attributed says whether the kernel lets files of the type have attributes.
func attributed(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFREG || mode&unix.S_IFMT == unix.S_IFDIR
}

// readRecord reads the record of the file fd, by its name if that is known:
// the kernel is faster then, and who swaps names deceives nobody but himself.
func readRecord(fd int, p place) (sys.Inode, bool, error) {
	var b [64]byte
	var n int
	var err error
	if p.dirfd >= 0 {
		n, err = sys.GetXattrInto(p.dirfd, p.name, sys.InodeAttr, b[:])
	} else {
		n, err = unix.Getxattr(procPath(fd), sys.InodeAttr, b[:])
	}
	switch {
	case err == nil:
		i, ok := sys.ParseInode(b[:n])
		return i, ok, nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP),
		errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
		return sys.Inode{}, false, nil // another format, another's file, or just removed
	}
	return sys.Inode{}, false, err
}

// recallName looks among the records of the directory.
func (t *Tree) recallName(p place, mode uint32, f *file) error {
	if p.dirfd < 0 || !t.recorded {
		return nil
	}
	names, err := sys.RecordedNames(p.dirfd, t.self)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return nil
		}
		return err
	}
	if i, ok := names.Lookup(p.name, mode); ok {
		i.Rdev = f.is.Rdev
		f.is, f.recorded = i, true
	}
	return nil
}

// natural is what a file is in the sandbox if nothing is recorded.
func (t *Tree) natural(st *unix.Statx_t) sys.Inode {
	rdev := unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	if t.recorded {
		return sys.Shown(uint32(st.Mode), st.Uid, st.Gid, rdev, t.self)
	}
	return sys.Inode{Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Rdev: rdev}
}

// statx is the answer to the client.
func (f *file) statx() lisafs.Statx {
	st := &f.host
	return lisafs.Statx{
		Mask: st.Mask, Blksize: st.Blksize, Nlink: st.Nlink, Ino: st.Ino, Size: st.Size, Blocks: st.Blocks,
		Mode: uint16(f.is.Mode), UID: f.is.UID, GID: f.is.GID,
		RdevMajor: unix.Major(f.is.Rdev), RdevMinor: unix.Minor(f.is.Rdev),
		DevMajor: st.Dev_major, DevMinor: st.Dev_minor,
		Atime: timestamp(st.Atime), Btime: timestamp(st.Btime), Ctime: timestamp(st.Ctime), Mtime: timestamp(st.Mtime),
	}
}

func timestamp(ts unix.StatxTimestamp) lisafs.StatxTimestamp {
	return lisafs.StatxTimestamp{Sec: ts.Sec, Nsec: ts.Nsec}
}

func kind[T uint16 | uint32](mode T) uint32 { return uint32(mode) & unix.S_IFMT }

func isDevice(i sys.Inode) bool {
	return kind(i.Mode) == unix.S_IFCHR || kind(i.Mode) == unix.S_IFBLK
}
