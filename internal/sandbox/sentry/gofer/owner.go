package gofer

import (
	"errors"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// become makes the file fd at p be want in the sandbox: on disk as far as that
// is allowed, and by a record for the rest. f is what it is now, and afterwards.
func (t *Tree) become(fd int, p place, f *file, want sys.Inode) error {
	var err error
	if t.recorded {
		err = t.setHostMode(fd, f, want)
	} else {
		err = t.setReally(fd, f, want)
	}
	if err != nil {
		return err
	}
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

// setHostMode gives a file of this process the mode that goes with a record.
func (t *Tree) setHostMode(fd int, f *file, want sys.Inode) error {
	mode := want.HostMode()
	if kind(f.host.Mode) == unix.S_IFLNK || uint32(f.host.Mode)&0o7777 == mode {
		return nil
	}
	if f.host.Uid != t.self.UID && want.Mode == f.is.Mode {
		return nil // another's file, and nobody asks for another mode
	}
	return t.chmod(fd, f, mode)
}

// chmod changes the mode on disk.
func (t *Tree) chmod(fd int, f *file, mode uint32) error {
	if err := unix.Fchmodat(unix.AT_FDCWD, procPath(fd), mode, 0); err != nil {
		return err
	}
	f.host.Mode = f.host.Mode&unix.S_IFMT | uint16(mode)
	return nil
}

// setReally gives a file its owners and its mode. What is refused for want of
// a capability, or because a user namespace has no such id, stays as it is.
func (t *Tree) setReally(fd int, f *file, want sys.Inode) error {
	if f.host.Uid != want.UID || f.host.Gid != want.GID {
		err := unix.Fchownat(fd, "", int(want.UID), int(want.GID), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !refused(err) {
			return err
		}
		if err == nil {
			f.host.Uid, f.host.Gid = want.UID, want.GID
			f.host.Mode &^= unix.S_ISUID | unix.S_ISGID // so that it is set again
		}
	}
	mode := want.Mode & 0o7777
	if kind(f.host.Mode) == unix.S_IFLNK || uint32(f.host.Mode)&0o7777 == mode {
		return nil
	}
	if err := t.chmod(fd, f, mode); err != nil && !refused(err) {
		return err
	}
	return nil
}

func refused(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) }

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

// recordName makes the directory say what a link, pipe or socket is, or say
// nothing if it need not.
func (t *Tree) recordName(p place, f *file, want sys.Inode) error {
	bare := t.natural(&f.host) == want
	switch {
	case p.dirfd < 0 && bare:
		return nil
	case p.dirfd < 0:
		return unix.ENOTSUP
	}
	names, err := sys.RecordedNames(p.dirfd)
	if err == nil && bare && names.Links == nil && len(names.Of) == 0 {
		return nil
	}
	return sys.ChangeNames(p.dirfd, t.self, func(n *sys.Names) bool {
		if bare && n.Links == nil {
			return n.Drop(p.name)
		}
		return n.Set(p.name, want)
	})
}

// markStandIn says in a directory that its regular files may be nodes.
func (t *Tree) markStandIn(dirfd int) error {
	names, err := sys.RecordedNames(dirfd)
	if err == nil && names.StandIns {
		return nil
	}
	err = sys.ChangeNames(dirfd, t.self, func(n *sys.Names) bool {
		done := n.StandIns
		n.StandIns = true
		return !done
	})
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSPC) {
		return nil // a listing shows the wrong type, stat the right one
	}
	return err
}

// dropName forgets what the directory recorded of a name that is gone.
func (t *Tree) dropName(p place) {
	names, err := sys.RecordedNames(p.dirfd)
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
