package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

const (
	// maxLinks bounds the symbolic links in one entry's parents, as the
	// kernel does.
	maxLinks = 40
	// openDirs bounds the directories kept open on the way to the present one.
	openDirs = 128
)

// A placer makes entries below one directory, one after the other, and stays
// in the directory of the last one, so that the next costs no path walk. It
// opens each component by itself and without following links.
type placer struct {
	o       UnpackOptions
	root    string
	umask   uint32
	uid     uint32 // of this process: what new files have anyway
	gid     uint32
	setgid  bool // some directory hands its group down
	devices int
	made    int // directories, also those that no entry names

	asked string  // the directory that was entered last, as it was named
	stack []level // from the root to it
	// times are the modification times of directories made here; they are
	// set again when a directory is left after a change in it.
	times map[string]time.Time
	// late are modes that would lock this process out of its directory.
	late map[string]uint32
}

// level is one directory on the way; fd is -1 when it had to be closed.
type level struct {
	name  string
	path  string
	fd    int
	dirty bool
}

// newPlacer opens dir, which should be empty.
func newPlacer(dir string, o UnpackOptions) (*placer, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	// What the store's own directory hands down is not part of a layer.
	_ = unix.Fremovexattr(fd, "system.posix_acl_default")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "fstat", Path: dir, Err: err}
	}
	return &placer{
		o: o, root: dir, umask: sys.Umask(), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		setgid: st.Mode&unix.S_ISGID != 0,
		stack:  []level{{fd: fd}},
		times:  map[string]time.Time{}, late: map[string]uint32{},
	}, nil
}

// close leaves all directories and gives them the times and modes that had to
// wait. It has to be called after a failure, too.
func (p *placer) close(err error) error {
	err = errors.Join(err, p.popTo(1))
	if err == nil {
		err = p.applyLate()
	}
	root := p.top()
	if t, ok := p.times[""]; ok && err == nil {
		err = setTime(root.fd, t)
	}
	return errors.Join(err, unix.Close(root.fd))
}

func (p *placer) top() *level { return &p.stack[len(p.stack)-1] }

// applyLate sets the modes that waited; a path may name something else by now.
func (p *placer) applyLate() error {
	deepest := slices.SortedFunc(maps.Keys(p.late), func(a, b string) int { return ComparePaths(b, a) })
	for _, path := range deepest {
		fd, err := sys.OpenDirBeneath(p.stack[0].fd, "./"+path)
		if err != nil {
			continue
		}
		err = unix.Fchmod(fd, p.late[path])
		_ = unix.Close(fd)
		if err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	return nil
}

// popTo leaves directories until n are left.
func (p *placer) popTo(n int) error {
	var errs []error
	for len(p.stack) > n {
		l := p.top()
		if l.fd >= 0 {
			if t, ok := p.times[l.path]; ok && l.dirty {
				errs = append(errs, setTime(l.fd, t))
			}
			_ = unix.Close(l.fd)
		}
		p.stack = p.stack[:len(p.stack)-1]
	}
	return errors.Join(errs...)
}

// at goes to the directory of path and returns its descriptor.
func (p *placer) at(path string) (int, error) {
	dir := dirOf(path)
	if dir == p.asked {
		return p.top().fd, nil
	}
	if err := p.enter(dir); err != nil {
		return -1, err
	}
	p.asked = dir
	return p.top().fd, nil
}

// enter makes dir the present directory. Where the layer put a symbolic link
// on the way it is resolved here, inside the root, as Docker and containerd
// resolve it; the kernel follows none.
func (p *placer) enter(dir string) error {
	p.asked = "\x00" // no path, until this has succeeded
	var rest []string
	if dir != "" {
		rest = strings.Split(dir, "/")
	}
	keep := 1
	for keep < len(p.stack) && len(rest) > 0 && p.stack[keep].name == rest[0] {
		keep, rest = keep+1, rest[1:]
	}
	if err := p.back(keep); err != nil {
		return err
	}
	for links := 0; len(rest) > 0; {
		next := rest[0]
		rest = rest[1:]
		var err error
		switch next {
		case "", ".":
			continue
		case "..":
			err = p.back(max(len(p.stack)-1, 1))
		default:
			var target string
			if target, err = p.push(next); target != "" {
				if links++; links > maxLinks {
					return invalid("parent %.200s: too many symbolic links", dir)
				}
				if strings.HasPrefix(target, "/") {
					err = p.back(1)
				}
				rest = append(strings.Split(target, "/"), rest...)
			}
		}
		if err != nil {
			return fmt.Errorf("parent %.200s: %w", dir, err)
		}
	}
	return nil
}

// back leaves directories until n are left and opens the last again if it had
// to be closed meanwhile.
func (p *placer) back(n int) error {
	if err := p.popTo(n); err != nil {
		return err
	}
	if l := p.top(); l.fd < 0 {
		fd, err := sys.OpenDirBeneath(p.stack[0].fd, "./"+l.path)
		if err != nil {
			return &os.PathError{Op: "open", Path: l.path, Err: err}
		}
		l.fd = fd
	}
	return nil
}

// push enters one directory below the present one, making it if it is
// missing. If the name is a symbolic link its target is returned instead.
func (p *placer) push(name string) (target string, err error) {
	parent := p.top()
	path := joinPath(parent.path, name)
	fd, err := sys.OpenDirAt(parent.fd, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err = p.mkdir(parent.fd, name, impliedDir(path)); err == nil {
			fd, err = sys.OpenDirAt(parent.fd, name)
		}
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return p.notDir(parent.fd, name, path)
	case errors.Is(err, fs.ErrPermission) && p.late[path] != 0:
		if err = unix.Fchmodat(parent.fd, name, p.late[path]|0o700, 0); err == nil {
			fd, err = sys.OpenDirAt(parent.fd, name)
		}
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	p.stack = append(p.stack, level{name: name, path: path, fd: fd})
	if n := len(p.stack) - openDirs; n > 0 && p.stack[n].fd >= 0 {
		l := &p.stack[n]
		if t, ok := p.times[l.path]; ok && l.dirty {
			err = setTime(l.fd, t)
		}
		_ = unix.Close(l.fd)
		l.fd = -1
	}
	return "", err
}

// notDir deals with a parent that is no directory: a link's target is
// returned, a whiteout becomes an opaque directory.
func (p *placer) notDir(dirfd int, name, path string) (string, error) {
	var st unix.Stat_t
	if err := sys.LstatAt(dirfd, name, &st); err != nil {
		return "", &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return sys.ReadlinkAt(dirfd, name)
	case sys.IsWhiteout(&st):
		e := impliedDir(path)
		if err := p.dir(dirfd, &e); err != nil {
			return "", err
		}
		return p.push(name)
	}
	return "", invalid("%.200s is not a directory", path)
}

// place makes an entry that has no content; it reports false for a regular
// file, which is the caller's.
func (p *placer) place(e *oci.Entry) (bool, error) {
	if e.Path == "." {
		return true, p.rootEntry(e)
	}
	dirfd, err := p.at(e.Path)
	if err != nil {
		return true, err
	}
	if here := p.top(); here.path != dirOf(e.Path) { // a link led here
		e.Path = joinPath(here.path, baseOf(e.Path))
	}
	p.top().dirty = true
	switch kind := e.Mode & unix.S_IFMT; {
	case e.Whiteout:
		return true, p.whiteout(dirfd, e)
	case e.Hardlink:
		return true, p.hardlink(e)
	case e.Opaque && kind == 0:
		return true, p.opaque(dirfd, e)
	case kind == unix.S_IFDIR:
		return true, p.dir(dirfd, e)
	case kind == unix.S_IFREG:
		return false, nil
	case (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && p.o.Recorded:
		return true, p.standIn(dirfd, e)
	case kind == unix.S_IFLNK:
		return true, p.special(dirfd, e, func() error { return unix.Symlinkat(e.Link, dirfd, baseOf(e.Path)) })
	case (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && p.o.InUserns:
		return true, p.record(dirfd, e)
	case kind == unix.S_IFCHR || kind == unix.S_IFBLK || kind == unix.S_IFIFO:
		return true, p.special(dirfd, e, func() error {
			return unix.Mknodat(dirfd, baseOf(e.Path), e.Mode&^p.umask, int(e.Rdev))
		})
	}
	return true, invalid("mode %#o is of no known type", e.Mode)
}

// making calls create; what is in the way is removed first.
func (p *placer) making(dirfd int, e *oci.Entry, create func() error) error {
	err := create()
	if errors.Is(err, unix.EEXIST) {
		if err = sys.RemoveAllAt(dirfd, baseOf(e.Path)); err != nil {
			return err
		}
		err = create()
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: e.Path, Err: err}
	}
	return nil
}

// special makes a node without content: symbolic link, device or pipe.
func (p *placer) special(dirfd int, e *oci.Entry, create func() error) error {
	err := p.making(dirfd, e, create)
	if errors.Is(err, unix.EPERM) && e.Mode&unix.S_IFMT != unix.S_IFLNK {
		return fmt.Errorf("%w (device nodes need CAP_MKNOD outside of user namespaces)", err)
	}
	if err != nil {
		return err
	}
	if p.o.Recorded {
		return p.recordSpecial(dirfd, e)
	}
	base := baseOf(e.Path)
	uid, gid := p.owner(e)
	if p.mustChown(uid, gid) {
		if err := unix.Fchownat(dirfd, base, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return ownerError(e.Path, uid, gid, err)
		}
	}
	if isLink := e.Mode&unix.S_IFMT == unix.S_IFLNK; !isLink && (p.mustChmod(e.Mode) || e.Mode&0o7000 != 0) {
		if err := unix.Fchmodat(dirfd, base, e.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	if err := setXattrs(e, func(attr string, value []byte) error { return sys.SetXattrAt(dirfd, base, attr, value) }); err != nil {
		return err
	}
	ts := timespecs(e.ModTime)
	if err := unix.UtimesNanoAt(dirfd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: e.Path, Err: err}
	}
	return nil
}
