package sys

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// RecordedNames reads NamesAttr of the directory dirfd, which may have been
// opened with O_PATH. What nobody recorded, or another than self could have,
// is nothing.
func RecordedNames(dirfd int, self Owner) (Names, error) {
	b, err := GetXattrAt(dirfd, ".", NamesAttr)
	if err != nil {
		if unrecorded(err) {
			err = nil
		}
		return Names{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(dirfd, &st); err != nil {
		return Names{}, err
	}
	n, ok := ParseNames(b)
	if !ok || !self.Keeps(st.Mode, st.Uid) {
		return Names{}, nil
	}
	return n, nil
}

// Seen is what a file is of which st and a tell, where self keeps records; names
// are those of its directory.
func Seen(name string, st *unix.Stat_t, a FileAttrs, names *Names, self Owner) Inode {
	i := Shown(st.Mode, st.Uid, st.Gid, st.Rdev, self)
	switch {
	case st.Uid != self.UID:
	case special(st.Mode):
		if r, ok := names.Lookup(name, st.Mode); ok {
			r.Rdev = st.Rdev
			return r
		}
	case a.Record != nil && self.Keeps(st.Mode, st.Uid) && a.Record.Fits(st.Mode, st.Size):
		return *a.Record
	}
	return i
}

// RecordOn makes the open file fd, of mode and owner as st says, be want: its
// mode on disk, and a record if that does not say all.
func RecordOn(fd int, st *unix.Stat_t, want Inode, self Owner) error {
	mode := want.HostMode()
	if st.Mode&0o7777 != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
	}
	if Shown(st.Mode&unix.S_IFMT|mode, st.Uid, st.Gid, 0, self) != want {
		return unix.Fsetxattr(fd, InodeAttr, want.Format(), 0)
	}
	if err := unix.Fremovexattr(fd, InodeAttr); err != nil && !unrecorded(err) {
		return err
	}
	return nil
}

// RecordName makes the directory dirfd say what name is, a link, pipe or
// socket, if it is not what it seems by st.
func RecordName(dirfd int, name string, st *unix.Stat_t, want Inode, self Owner) error {
	want.Rdev = st.Rdev
	bare := Shown(st.Mode, st.Uid, st.Gid, st.Rdev, self) == want
	names, err := RecordedNames(dirfd, self)
	if err == nil && bare && names.Links == nil && len(names.Of) == 0 {
		return nil
	}
	return ChangeNames(dirfd, self, func(n *Names) bool {
		if bare && n.Links == nil {
			return n.Drop(name)
		}
		return n.Set(name, want)
	})
}

// RecordStandIn makes the directory dirfd say that its regular files may stand
// for nodes.
func RecordStandIn(dirfd int, self Owner) error {
	names, err := RecordedNames(dirfd, self)
	if err == nil && names.StandIns {
		return nil
	}
	return ChangeNames(dirfd, self, func(n *Names) bool {
		done := n.StandIns
		n.StandIns = true
		return !done
	})
}

// unrecorded says that there is no such attribute, or can be none here.
func unrecorded(err error) bool {
	return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP)
}

// ChangeNames changes the records of the directory dirfd, which self keeps,
// one process after the other; change says whether it did. If they do not
// fit, the error is ENOSPC, and ENOTSUP where the file system keeps no
// attributes.
func ChangeNames(dirfd int, self Owner, change func(*Names) bool) error {
	fd, err := OpenDirAt(dirfd, ".")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lockShortly(fd)
	n, err := RecordedNames(fd, self)
	if err != nil || !change(&n) {
		return err
	}
	value := n.Format()
	if len(value) > MaxNames {
		links, err := linksIn(fd, self)
		if err != nil {
			return err
		}
		n.Shrink(links)
		value = n.Format()
	}
	switch {
	case len(value) > MaxNames:
		return unix.ENOSPC
	case value == nil:
		if err := unix.Fremovexattr(fd, NamesAttr); err != nil && !unrecorded(err) {
			return err
		}
		return nil
	}
	return unix.Fsetxattr(fd, NamesAttr, value, 0)
}

// lockShortly locks a directory against other processes that change its
// records. Whoever holds it longer does not do that, and is not waited for.
func lockShortly(fd int) {
	for range 2000 {
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// linksIn lists the symbolic links in a directory with the owners that they
// show without records.
func linksIn(fd int, self Owner) (map[string]Owner, error) {
	names, err := ReadNames(fd)
	if err != nil {
		return nil, err
	}
	links := map[string]Owner{}
	for _, name := range names {
		var st unix.Stat_t
		if err := LstatAt(fd, name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		i := Shown(st.Mode, st.Uid, st.Gid, 0, self)
		links[name] = Owner{i.UID, i.GID}
	}
	return links, nil
}
