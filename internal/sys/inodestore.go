package sys

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// RecordedNames reads NamesAttr of the directory dirfd, which may have been
// opened with O_PATH. What nobody recorded, and what nobody could have, is nothing.
func RecordedNames(dirfd int) (Names, error) {
	b, err := GetXattrAt(dirfd, ".", NamesAttr)
	if err != nil {
		if unrecorded(err) {
			err = nil
		}
		return Names{}, err
	}
	n, ok := ParseNames(b)
	if !ok {
		return Names{}, nil
	}
	return n, nil
}

// unrecorded says that there is no such attribute, or can be none here.
func unrecorded(err error) bool {
	return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP)
}

// ChangeNames changes the records of the directory dirfd, one process after
// the other; change says whether it did. If they do not fit, the error is
// ENOSPC, and ENOTSUP where the file system keeps no attributes.
func ChangeNames(dirfd int, self Owner, change func(*Names) bool) error {
	fd, err := OpenDirAt(dirfd, ".")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lockShortly(fd)
	n, err := RecordedNames(fd)
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
	for range 200 {
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
