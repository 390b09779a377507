package layer

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// inode is what an entry's file should be.
func (p *placer) inode(e *oci.Entry) sys.Inode {
	i := sys.Inode{Mode: e.Mode & (unix.S_IFMT | 0o7777)}
	if i.UID, i.GID = p.owner(e); i.Mode&unix.S_IFMT == unix.S_IFCHR || i.Mode&unix.S_IFMT == unix.S_IFBLK {
		i.Rdev = e.Rdev
	}
	return i
}

// recordFile gives an open file or directory its mode on disk, the record of
// what it should be, and its attributes.
func (p *placer) recordFile(fd int, e *oci.Entry) error {
	return p.recordAs(fd, e, p.inode(e))
}

func (p *placer) recordAs(fd int, e *oci.Entry, want sys.Inode) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "fstat", Path: e.Path, Err: err}
	}
	if err := sys.RecordOn(fd, &st, want, sys.Owner{UID: p.uid, GID: p.gid}); err != nil {
		return recordError(e.Path, err)
	}
	return setXattrs(e, func(attr string, value []byte) error {
		err := unix.Fsetxattr(fd, attr, value, 0)
		if errors.Is(err, unix.EPERM) && attr == sys.CapabilityAttr {
			return nil // as for setuid: a sandbox's kernel would not see it there
		}
		return err
	})
}

// standIn makes the empty file that stands for a device node.
func (p *placer) standIn(dirfd int, e *oci.Entry) error {
	file := *e
	file.Mode, file.Xattrs = unix.S_IFREG|0o600, nil
	fd, err := p.file(dirfd, &file)
	if err != nil {
		return err
	}
	p.devices++
	err = p.recordAs(fd, &file, p.inode(e))
	if err == nil {
		err = sys.RecordStandIn(dirfd, sys.Owner{UID: p.uid, GID: p.gid})
	}
	if err == nil {
		err = setTime(fd, e.ModTime)
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return recordError(e.Path, err)
	}
	return nil
}

// recordSpecial finishes a symbolic link or a pipe that was just made.
func (p *placer) recordSpecial(dirfd int, e *oci.Entry) error {
	base, want := baseOf(e.Path), p.inode(e)
	var st unix.Stat_t
	err := sys.LstatAt(dirfd, base, &st)
	if mode := want.HostMode(); err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode&0o7777 != mode {
		err = unix.Fchmodat(dirfd, base, mode, 0)
		st.Mode = st.Mode&unix.S_IFMT | mode
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		want.Mode = st.Mode
	}
	if err == nil {
		err = sys.RecordName(dirfd, base, &st, want, sys.Owner{UID: p.uid, GID: p.gid})
	}
	if err == nil {
		ts := timespecs(e.ModTime)
		err = unix.UtimesNanoAt(dirfd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return recordError(e.Path, err)
	}
	return nil
}

// recordLink records for a new name what the directory of the old one says of
// its file, of which st is the description.
func (p *placer) recordLink(olddir int, old string, dirfd int, name string, st *unix.Stat_t) error {
	self := sys.Owner{UID: p.uid, GID: p.gid}
	names, err := sys.RecordedNames(olddir, self)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && names.StandIns {
		err = sys.RecordStandIn(dirfd, self)
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = sys.RecordName(dirfd, name, st, sys.Seen(old, st, sys.FileAttrs{}, &names, self), self)
	}
	if err != nil {
		return recordError(name, err)
	}
	return nil
}

func recordError(path string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOTSUP):
		hint = " (the file system keeps no user attributes, so that nothing but root's files can be kept there; tmpfs needs Linux 6.6)"
	case errors.Is(err, unix.ENOSPC):
		hint = " (or the attributes of its directory are more than the file system keeps)"
	}
	return fmt.Errorf("record the owner of %.200s: %w%s", path, err, hint)
}
