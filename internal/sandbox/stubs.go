package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// maxLinks bounds symbolic links on the way to a mount point, as the kernel does.
const maxLinks = 40

// stubs are the mount points that den made in a root file system, to be removed
// after the payload has ended: they are no change that the payload made.
type stubs struct {
	root oci.Mount
	// made are paths without links, relative to the root, in order.
	made []string
	// copied are directories that the overlay copied to the upper directory
	// only because something was made in them.
	copied []string
	// note writes a path down before it is made; may be nil.
	note func(kind byte, path string) error
}

// openDir opens the directory at p below dir, with no symbolic link on the way.
func openDir(dir int, p string) (int, error) {
	if p == "" {
		p = "."
	}
	return unix.Openat2(dir, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// make makes the directory (or file) that target names below root, and the
// directories above it. Links are followed as inside the root. keep makes
// something that stays, such as a working directory.
func (s *stubs) make(root int, target string, dir, keep bool) error {
	rest := strings.Split(target, "/")
	var at []string
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = at[:max(len(at)-1, 0)]
			continue
		}
		last := !slices.ContainsFunc(rest, func(c string) bool { return c != "" && c != "." })
		link, err := s.step(root, at, name, !last || dir, keep)
		switch {
		case err != nil:
			return fmt.Errorf("make mount point %s: %s: %w", target, path.Join(append(at, name)...), err)
		case link == "":
			at = append(at, name)
			continue
		}
		if links++; links > maxLinks {
			return fmt.Errorf("make mount point %s: %w", target, unix.ELOOP)
		}
		if strings.HasPrefix(link, "/") {
			at = nil
		}
		rest = append(strings.Split(link, "/"), rest...)
	}
	return nil
}

// step looks at name in the directory at, makes it if it is missing, and
// returns the target if it is a link.
func (s *stubs) step(root int, at []string, name string, dir, keep bool) (link string, err error) {
	parent, err := openDir(root, path.Join(at...))
	if err != nil {
		return "", err
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	err = unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return "", s.create(root, parent, at, name, dir, keep)
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, name, b)
	return string(b[:max(n, 0)]), err
}

// create makes one missing directory or file, leaves the directory's times as
// they were, and remembers what to undo.
func (s *stubs) create(root, parent int, at []string, name string, dir, keep bool) error {
	onRoot := mountID(root) == mountID(parent)
	if onRoot && !keep {
		if err := s.remember(at, name); err != nil {
			return err
		}
	}
	restore := holdTimes(parent)
	// The mode is not subject to den's umask.
	mode := uint32(0o644)
	var err error
	if dir {
		mode = 0o755
		err = unix.Mkdirat(parent, name, mode)
	} else {
		err = unix.Mknodat(parent, name, unix.S_IFREG|mode, 0)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err == nil {
		err = unix.Fchmodat(parent, name, mode, 0)
	}
	if !keep {
		restore()
	}
	return err
}

// remember notes a path that is about to be made, and the directories that the
// overlay will copy up for it.
func (s *stubs) remember(at []string, name string) error {
	made, copied := len(s.made), len(s.copied)
	s.made = append(s.made, path.Join(append(at, name)...))
	s.rememberCopies(at)
	if s.note == nil {
		return nil
	}
	for _, p := range s.copied[copied:] {
		if err := s.note(noteCopied, p); err != nil {
			return err
		}
	}
	return s.note(noteMade, s.made[made])
}

func (s *stubs) rememberCopies(at []string) {
	if s.root.Upper == "" {
		return
	}
	upper, err := unix.Open(s.root.Upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(upper)
	for i := range at {
		dir := path.Join(at[:i+1]...)
		fd, err := openDir(upper, dir)
		if err == nil {
			unix.Close(fd)
		} else if !slices.Contains(s.copied, dir) && !slices.Contains(s.made, dir) {
			s.copied = append(s.copied, dir)
		}
	}
}

// remove undoes make, as far as the payload left it alone: an empty directory, an
// empty file, an unchanged copy of a directory. It is called when the mounts are gone.
func (s *stubs) remove() {
	base := s.root.Upper
	if s.root.Type != "overlay" {
		base = s.root.Source
	}
	if base == "" || len(s.made) == 0 {
		return
	}
	fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for _, p := range slices.Backward(s.made) {
		removeEmpty(fd, p)
	}
	for _, p := range slices.Backward(s.copied) {
		if s.unchanged(fd, p) {
			removeEmpty(fd, p)
		}
	}
}

// removeEmpty removes p below base if it is an empty directory or an empty file, and leaves
// the times of the directory that it was in. It is best effort: what stays is a change.
func removeEmpty(base int, p string) {
	parent, err := openDir(base, path.Dir(p))
	if err != nil {
		return
	}
	defer unix.Close(parent)
	name := path.Base(p)
	var st unix.Stat_t
	if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	restore := holdTimes(parent)
	defer restore()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		_ = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	case unix.S_IFREG:
		if st.Size == 0 && st.Nlink == 1 {
			_ = unix.Unlinkat(parent, name, 0)
		}
	}
}

// unchanged reports whether the directory p of the upper directory looks like the lower one.
func (s *stubs) unchanged(upper int, p string) bool {
	a, ok := dirState(upper, p)
	if !ok {
		return false
	}
	for _, l := range s.root.Lower {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		b, ok := dirState(fd, p)
		unix.Close(fd)
		if ok {
			return a == b
		}
	}
	return false
}

// state is what a layer would say about a directory.
type state struct {
	mode, uid, gid uint32
	mtime          unix.Timespec
	xattrs         string
}

func dirState(base int, p string) (state, bool) {
	fd, err := openDir(base, p)
	if err != nil {
		return state{}, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return state{}, false
	}
	return state{st.Mode, st.Uid, st.Gid, st.Mtim, dirXattrs(fd)}, true
}

// dirXattrs are the extended attributes of an O_PATH directory, but for the overlay's own.
func dirXattrs(fd int) string {
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	list := make([]byte, 1<<16)
	n, err := unix.Listxattr(name, list)
	if err != nil {
		return err.Error()
	}
	var all []string
	for key := range strings.SplitSeq(string(bytes.TrimRight(list[:n], "\x00")), "\x00") {
		if key == "" || strings.HasPrefix(key, "user.overlay.") || strings.HasPrefix(key, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Getxattr(name, key, value)
		all = append(all, fmt.Sprintf("%q=%q %v", key, value[:max(n, 0)], err))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// holdTimes returns a function that gives the directory its present times back.
func holdTimes(dir int) func() {
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil {
		return func() {}
	}
	return func() {
		_ = unix.UtimesNanoAt(dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
}

// mountID tells mounts apart; 0 before Linux 5.8.
func mountID(fd int) uint64 {
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st) != nil {
		return 0
	}
	return st.Mnt_id
}
