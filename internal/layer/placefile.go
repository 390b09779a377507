package layer

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/oci"
	"den/internal/sys"
)

// rootEntry gives the root directory itself what the entry "." says.
func (p *placer) rootEntry(e *oci.Entry) error {
	if err := p.enter(""); err != nil {
		return err
	}
	p.asked = ""
	fd := p.top().fd
	if e.Opaque {
		if err := unix.Fsetxattr(fd, sys.OpaqueAttr, []byte("y"), 0); err != nil {
			return xattrError(".", sys.OpaqueAttr, 1, err)
		}
	}
	if e.Mode == 0 {
		return nil
	}
	p.times[""] = e.ModTime
	if err := p.dress(fd, e); err != nil || p.o.Recorded {
		return err
	}
	if mode := e.Mode & 0o7777; p.uid != 0 && mode&0o700 != 0o700 {
		p.late["."] = mode
		return nil
	} else if err := unix.Fchmod(fd, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: ".", Err: err}
	}
	p.setgid = p.setgid || e.Mode&unix.S_ISGID != 0
	return nil
}

// dir makes a directory, or gives an existing one new attributes.
func (p *placer) dir(dirfd int, e *oci.Entry) error {
	base := baseOf(e.Path)
	err := p.mkdir(dirfd, base, *e)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := sys.LstatAt(dirfd, base, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: e.Path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return p.dressDir(dirfd, base, e, st.Mode&0o7777)
	}
	if err := sys.RemoveAllAt(dirfd, base); err != nil {
		return err
	}
	again := *e
	again.Opaque = e.Opaque || sys.IsWhiteout(&st) // the layers below stay removed
	return p.mkdir(dirfd, base, again)
}

// mkdir makes a directory that does not exist.
func (p *placer) mkdir(dirfd int, name string, e oci.Entry) error {
	if p.made++; p.made > p.o.MaxEntries {
		return invalid("more than %d directories", p.o.MaxEntries)
	}
	made := e.Mode & 0o777
	if p.uid != 0 || p.o.Recorded {
		made |= 0o700
	}
	if err := unix.Mkdirat(dirfd, name, made); err != nil {
		return &os.PathError{Op: "mkdir", Path: e.Path, Err: err}
	}
	p.top().dirty = true
	delete(p.late, e.Path)
	return p.dressDir(dirfd, name, &e, made&^p.umask)
}

// dressDir gives a directory whose mode is have the entry's attributes.
func (p *placer) dressDir(dirfd int, name string, e *oci.Entry, have uint32) error {
	uid, gid := p.owner(e)
	mode := e.Mode & 0o7777
	chown := p.mustChown(uid, gid) || p.o.Recorded
	if p.uid != 0 && mode&0o700 != 0o700 && !p.o.Recorded {
		p.late[e.Path] = mode
		mode |= 0o700
	}
	chmod := have != mode || p.setgid
	p.setgid = p.setgid || mode&unix.S_ISGID != 0
	p.times[e.Path] = e.ModTime
	if !chown && !chmod && len(e.Xattrs) == 0 && !e.Opaque {
		ts := timespecs(e.ModTime)
		if err := unix.UtimesNanoAt(dirfd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "utimensat", Path: e.Path, Err: err}
		}
		return nil
	}
	fd, err := sys.OpenDirAt(dirfd, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	err = p.dress(fd, e)
	if err == nil && chmod && !p.o.Recorded {
		err = unix.Fchmod(fd, mode)
	}
	if err == nil && e.Opaque {
		if err = unix.Fsetxattr(fd, sys.OpaqueAttr, []byte("y"), 0); err != nil {
			err = xattrError(e.Path, sys.OpaqueAttr, 1, err)
		}
	}
	if err == nil {
		err = setTime(fd, e.ModTime)
	}
	return errors.Join(err, unix.Close(fd))
}

// dress sets the owner and the extended attributes of an open file.
func (p *placer) dress(fd int, e *oci.Entry) error {
	if p.o.Recorded {
		return p.recordFile(fd, e)
	}
	uid, gid := p.owner(e)
	if p.mustChown(uid, gid) || e.Path == "." {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			return ownerError(e.Path, uid, gid, err)
		}
	}
	return setXattrs(e, func(attr string, value []byte) error { return unix.Fsetxattr(fd, attr, value, 0) })
}

// create makes an empty regular file in the present directory.
func (p *placer) create(e *oci.Entry) (room, error) {
	fd, err := p.file(p.top().fd, e)
	return room{fd: fd}, err
}

// file makes an empty regular file, open for reading and writing.
func (p *placer) file(dirfd int, e *oci.Entry) (fd int, err error) {
	if err := failpoint.Hit("layer.place.create"); err != nil {
		return -1, err
	}
	base := baseOf(e.Path)
	err = p.making(dirfd, e, func() (err error) {
		const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		for {
			if fd, err = unix.Openat(dirfd, base, flags, e.Mode&0o777); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	return fd, err
}

// finish gives a file that was written its attributes and closes it; err is
// what went wrong before.
func (p *placer) finish(r room, e *oci.Entry, err error) error {
	fd := r.fd
	if err == nil {
		err = p.dress(fd, e)
	}
	if err == nil && !p.o.Recorded && (p.mustChmod(e.Mode) || e.Mode&0o7000 != 0) {
		if err = unix.Fchmod(fd, e.Mode&0o7777); err != nil { // after chown, which clears setuid
			err = &os.PathError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	if err == nil {
		err = setTime(fd, e.ModTime)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = &os.PathError{Op: "close", Path: e.Path, Err: cerr}
	}
	return err
}

func (p *placer) owner(e *oci.Entry) (uid, gid uint32) {
	if p.o.Owner != nil {
		return p.o.Owner.UID, p.o.Owner.GID
	}
	return e.UID, e.GID
}

// mustChown says whether a new file has another owner than it should.
func (p *placer) mustChown(uid, gid uint32) bool {
	return uid != p.uid || gid != p.gid || p.setgid
}

// mustChmod says whether the umask took bits from a new file.
func (p *placer) mustChmod(mode uint32) bool { return mode&0o777&p.umask != 0 }

func setXattrs(e *oci.Entry, set func(attr string, value []byte) error) error {
	for attr, value := range e.Xattrs {
		err := set(attr, value)
		if errors.Is(err, unix.EPERM) && attr != sys.CapabilityAttr && e.Mode&unix.S_IFMT != unix.S_IFREG && e.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue // the kernel allows user.* on files and directories only
		}
		if err != nil {
			return xattrError(e.Path, attr, len(value), err)
		}
	}
	return nil
}

func xattrError(path, attr string, size int, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOTSUP):
		hint = " (the store's file system keeps no such attributes; tmpfs needs Linux 6.6)"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
		hint = " (ext4 keeps about 4 KiB of them for a file)"
	}
	return fmt.Errorf("set extended attribute %s of %d bytes on %.200s: %w%s", attr, size, path, err, hint)
}

func ownerError(path string, uid, gid uint32, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("chown %.200s to %d:%d: %w: this user namespace does not map that id; it needs a range of at least %d ids in /etc/subuid and /etc/subgid",
			path, uid, gid, err, int64(max(uid, gid))+1)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("chown %.200s to %d:%d: %w: other owners need root, or a user namespace with a range of ids", path, uid, gid, err)
	}
	return fmt.Errorf("chown %.200s to %d:%d: %w", path, uid, gid, err)
}

// timespecs leaves the access time as it is and sets the other.
func timespecs(t time.Time) [2]unix.Timespec {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	return [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Unix(), Nsec: int64(t.Nanosecond())}}
}

// setTime sets the modification time of an open file.
func setTime(fd int, t time.Time) error {
	ts := timespecs(t)
	if err := sys.Futimens(fd, &ts); err != nil {
		return os.NewSyscallError("utimensat", err)
	}
	return nil
}
