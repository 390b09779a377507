package gofer

import (
	"errors"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// become makes the file fd at p be want in the sandbox: on disk if that is
// allowed, else by a record. f is what it is now, and afterwards.
func (t *Tree) become(fd int, p place, f *file, want sys.Inode) error {
	if !t.recorded && kind(want.Mode) == kind(f.host.Mode) {
		return t.setReally(fd, f, want)
	}
	if f.host.Uid != t.self.UID {
		if want == f.is {
			return nil
		}
		return unix.EPERM // its owner could write the record
	}
	if mode := want.HostMode(); kind(f.host.Mode) != unix.S_IFLNK && uint32(f.host.Mode)&0o7777 != mode {
		if err := t.chmod(fd, f, mode); err != nil {
			return err
		}
	}
	var err error
	if t.natural(&f.host) == want {
		err = t.forget(fd, p, f, want)
	} else {
		err = t.record(fd, p, f, want)
	}
	if err == nil {
		f.is = want
	}
	return err
}

// chmod changes the mode on disk.
func (t *Tree) chmod(fd int, f *file, mode uint32) error {
	if err := unix.Fchmodat(unix.AT_FDCWD, procPath(fd), mode, 0); err != nil {
		return err
	}
	f.host.Mode = f.host.Mode&unix.S_IFMT | uint16(mode)
	return nil
}

// setReally gives a file its owners and its mode.
func (t *Tree) setReally(fd int, f *file, want sys.Inode) error {
	if f.host.Uid != want.UID || f.host.Gid != want.GID {
		err := unix.Fchownat(fd, "", int(want.UID), int(want.GID), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return err
		}
		f.host.Uid, f.host.Gid = want.UID, want.GID
		f.host.Mode &^= unix.S_ISUID | unix.S_ISGID // so that they are set again
	}
	if mode := want.Mode & 0o7777; kind(f.host.Mode) != unix.S_IFLNK && uint32(f.host.Mode)&0o7777 != mode {
		if err := t.chmod(fd, f, mode); err != nil {
			return err
		}
	}
	f.is = want
	return nil
}

// record keeps what a file should be.
func (t *Tree) record(fd int, p place, f *file, want sys.Inode) error {
	if f.recorded && f.is == want {
		return nil
	}
	f.recorded = true
	var err error
	if attributed(uint32(f.host.Mode)) {
		err = unix.Setxattr(procPath(fd), sys.InodeAttr, want.Format(), 0)
	} else {
		err = t.recordName(p, f, want)
	}
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSPC) {
		return t.memory.set(idOf(&f.host), want)
	}
	if err == nil {
		t.memory.drop(idOf(&f.host))
	}
	return err
}

// forget removes a record that says nothing new.
func (t *Tree) forget(fd int, p place, f *file, natural sys.Inode) error {
	t.memory.drop(idOf(&f.host))
	if !attributed(uint32(f.host.Mode)) {
		return t.recordName(p, f, natural)
	}
	if !f.recorded {
		return nil
	}
	f.recorded = false
	err := unix.Removexattr(procPath(fd), sys.InodeAttr)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// recordName makes the directory say what a link, pipe or socket is.
func (t *Tree) recordName(p place, f *file, want sys.Inode) error {
	bare := t.natural(&f.host) == want
	switch {
	case !t.recorded, p.dirfd < 0 && bare:
		return nil
	case p.dirfd < 0:
		return unix.ENOTSUP
	}
	if !bare {
		if err := t.settle(p.dirfd); err != nil {
			return err
		}
	}
	st := unix.Stat_t{Mode: uint32(f.host.Mode), Uid: f.host.Uid, Gid: f.host.Gid, Rdev: unix.Mkdev(f.host.Rdev_major, f.host.Rdev_minor)}
	return sys.RecordName(p.dirfd, p.name, &st, want, t.self)
}

// settle makes sure that what a directory records counts: others may not write
// to it on disk.
func (t *Tree) settle(dirfd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(dirfd, &st); err != nil {
		return err
	}
	switch {
	case t.self.Keeps(st.Mode, st.Uid):
		return nil
	case st.Uid != t.self.UID || !t.recorded:
		return unix.ENOTSUP
	}
	d, err := t.look(dirfd, nowhere())
	if err != nil {
		return err
	}
	return t.become(dirfd, nowhere(), &d, d.is)
}

// markStandIn says in a directory that its regular files may be nodes. Where
// that cannot be kept a listing shows the wrong type, and stat the right one.
func (t *Tree) markStandIn(dirfd int) {
	if t.settle(dirfd) == nil {
		_ = sys.RecordStandIn(dirfd, t.self)
	}
}

// dropName forgets what the directory recorded of a name that is gone.
func (t *Tree) dropName(p place) {
	names, err := sys.RecordedNames(p.dirfd, t.self)
	if err != nil || names.Of == nil {
		return
	}
	if _, ok := names.Of[p.name]; !ok {
		return
	}
	// A record that stays counts only for a new link, pipe or socket of the
	// name, which sets its own.
	_ = sys.ChangeNames(p.dirfd, t.self, func(n *sys.Names) bool { return n.Drop(p.name) })
}

// admit lets this process work with a file of its own that was there before
// and forbids that: its mode is recorded and widened. It says whether it could.
func (t *Tree) admit(fd int, p place) bool {
	if !t.recorded || t.readOnly {
		return false
	}
	f, err := t.look(fd, p)
	if err != nil || f.host.Uid != t.self.UID || uint32(f.host.Mode)&0o7777 == f.is.HostMode() || kind(f.host.Mode) == unix.S_IFLNK {
		return false
	}
	return t.become(fd, p, &f, f.is) == nil
}
