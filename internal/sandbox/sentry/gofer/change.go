package gofer

import (
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/lisafs"

	"den/internal/sys"
)

// SetStat implements lisafs.ControlFDImpl.
func (h *handle) SetStat(req lisafs.SetStatReq) (failed uint32, failure error) {
	if h.t.readOnly {
		return req.Mask, unix.EROFS
	}
	note := func(mask uint32, err error) {
		if err != nil {
			failed, failure = failed|req.Mask&mask, err
		}
	}
	const who = unix.STATX_MODE | unix.STATX_UID | unix.STATX_GID
	if req.Mask&unix.STATX_SIZE != 0 {
		note(unix.STATX_SIZE, h.truncate(req.Size))
	}
	if req.Mask&who != 0 {
		note(who, h.setOwner(req))
	}
	if req.Mask&(unix.STATX_ATIME|unix.STATX_MTIME) != 0 { // last, because the others change them
		note(unix.STATX_ATIME|unix.STATX_MTIME, h.setTimes(req))
	}
	return failed, failure
}

// setOwner sets owner, group and mode as far as they are asked for.
func (h *handle) setOwner(req lisafs.SetStatReq) error {
	p, done := nowhere(), func() {}
	if !attributed(h.kind) {
		p, done = h.place()
	}
	defer done()
	f, err := h.t.look(h.fd, p)
	if err != nil {
		return err
	}
	want := f.is
	if req.Mask&unix.STATX_MODE != 0 {
		if h.kind == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		want.Mode = want.Mode&unix.S_IFMT | req.Mode&0o7777
	}
	if req.Mask&unix.STATX_UID != 0 && req.UID.Ok() {
		want.UID = uint32(req.UID)
	}
	if req.Mask&unix.STATX_GID != 0 && req.GID.Ok() {
		want.GID = uint32(req.GID)
	}
	return h.t.become(h.fd, p, &f, want)
}

func (h *handle) truncate(size uint64) error {
	if h.kind != unix.S_IFREG || !h.IsRegular() {
		return unix.EINVAL
	}
	if size > 1<<63-1 {
		return unix.EFBIG
	}
	return h.admitted(func() error { return unix.Truncate(procPath(h.fd), int64(size)) })
}

func (h *handle) setTimes(req lisafs.SetStatReq) error {
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if req.Mask&unix.STATX_ATIME != 0 {
		times[0] = unix.Timespec{Sec: req.Atime.Sec, Nsec: req.Atime.Nsec}
	}
	if req.Mask&unix.STATX_MTIME != 0 {
		times[1] = unix.Timespec{Sec: req.Mtime.Sec, Nsec: req.Mtime.Nsec}
	}
	err := sys.UtimensFd(h.fd, &times)
	if err == unix.EINVAL && h.kind != unix.S_IFLNK { // before Linux 5.8
		return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(h.fd), times[:], 0)
	}
	return err
}

// Unlink implements lisafs.ControlFDImpl.
func (h *handle) Unlink(name string, flags uint32) error {
	if h.t.readOnly {
		return unix.EROFS
	}
	if flags&^unix.AT_REMOVEDIR != 0 {
		return unix.EINVAL
	}
	gone := h.t.lastName(place{h.fd, name})
	if err := h.admitted(func() error { return unix.Unlinkat(h.fd, name, int(flags)) }); err != nil {
		return err
	}
	gone()
	h.t.dropName(place{h.fd, name})
	return nil
}

// lastName looks at what is about to lose its name; the result forgets what
// is only remembered of it.
func (t *Tree) lastName(p place) func() {
	var st unix.Statx_t
	if t.memory.empty() || unix.Statx(p.dirfd, p.name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st) != nil {
		return func() {}
	}
	if st.Nlink > 1 && kind(st.Mode) != unix.S_IFDIR {
		return func() {}
	}
	return func() { t.memory.drop(idOf(&st)) }
}

// RenameAt implements lisafs.ControlFDImpl.
func (h *handle) RenameAt(oldName string, newDir lisafs.ControlFDImpl, newName string) error {
	return h.RenameAt2(oldName, newDir, newName, 0)
}

// RenameAt2 implements lisafs.ControlFDImpl. What directories recorded of a
// name follows it; if den dies in between, a link is root's.
func (h *handle) RenameAt2(oldName string, newDir lisafs.ControlFDImpl, newName string, flags uint32) error {
	if h.t.readOnly {
		return unix.EROFS
	}
	if len(oldName) > unix.NAME_MAX || len(newName) > unix.NAME_MAX {
		return unix.ENAMETOOLONG
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 { // a whiteout would be a device
		return unix.EINVAL
	}
	d := newDir.(*handle)
	from, to := place{h.fd, oldName}, place{d.fd, newName}
	moving, err := h.t.named(from)
	if err != nil {
		return err
	}
	replaced, err := h.t.named(to)
	if err != nil {
		return err
	}
	gone := func() {}
	if flags&unix.RENAME_EXCHANGE == 0 {
		gone = h.t.lastName(to)
	}
	err = d.admitted(func() error {
		return h.admitted(func() error { return unix.Renameat2(h.fd, oldName, d.fd, newName, uint(flags)) })
	})
	if err != nil {
		return err
	}
	// The names have changed: an error now would make lisafs think otherwise.
	// Whose record does not fit is root's.
	gone()
	if flags&unix.RENAME_EXCHANGE != 0 && replaced != nil {
		h.t.moved(from, replaced)
	} else {
		h.t.dropName(from)
	}
	if moving == nil { // something that has its record with it took the name
		h.t.dropName(to)
		return nil
	}
	h.t.moved(to, moving)
	return nil
}

// named describes what a directory may have recorded of a name, or an empty
// file, which may stand for a node. For everything else it is nil.
func (t *Tree) named(p place) (*file, error) {
	var st unix.Statx_t
	err := unix.Statx(p.dirfd, p.name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	if err != nil || kind(st.Mode) == unix.S_IFDIR || (kind(st.Mode) == unix.S_IFREG && st.Size > 0) {
		return nil, nil // rename says what is wrong
	}
	fd, f, err := t.open(p.dirfd, p.name)
	if err != nil {
		return nil, err
	}
	return &f, unix.Close(fd)
}

// moved records in a directory what got a name there. What cannot be recorded
// is remembered, and what cannot be remembered is root's.
func (t *Tree) moved(p place, f *file) {
	if attributed(uint32(f.host.Mode)) {
		t.dropName(p)
		if kind(f.is.Mode) != kind(f.host.Mode) {
			t.markStandIn(p.dirfd)
		}
		return
	}
	if t.recordName(p, f, f.is) != nil {
		_ = t.memory.set(idOf(&f.host), f.is)
	}
}
