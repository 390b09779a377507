package sandbox

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// WriteTar unpacks r into the directory name. What is in the way of an entry is removed
// first, so that nothing is ever written into a file, pipe or device that was there.
func (f *Files) WriteTar(ctx context.Context, name string, r io.Reader, o WriteTarOptions) error {
	fd, err := f.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return pathError("open", name, err)
	}
	unix.Close(fd)
	u := &fileWriter{f: f, ctx: ctx, dir: name, o: o, devices: sys.MakesDevices()}
	tr := tar.NewReader(&contextReader{ctx, r})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpack into %s: read tar: %w%w", name, err, hidden{errdefs.ErrInvalidArgument})
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("unpack into %s: %.200s: %w", name, h.Name, err)
		}
	}
	return u.lateTimes()
}

// A fileWriter unpacks one tar.
type fileWriter struct {
	f       *Files
	ctx     context.Context
	dir     string
	o       WriteTarOptions
	devices bool
	late    []lateTime
}

// A lateTime is a directory's time, which what is made in it would change.
type lateTime struct {
	name string
	time time.Time
}

// maxLateTimes bounds how many directories get their times back.
const maxLateTimes = 1 << 16

// inDir is an entry's name as a path of the root; names may not lead out of the directory.
func (u *fileWriter) inDir(name string) (string, error) {
	name = path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case name == ".." || strings.HasPrefix(name, "../"):
		return "", fmt.Errorf("the name leads out of the directory%w", hidden{errdefs.ErrInvalidArgument})
	case strings.Count(name, "/") > maxDepth:
		return "", fmt.Errorf("more than %d directories deep%w", maxDepth, hidden{errdefs.ErrInvalidArgument})
	}
	return path.Join("/", u.dir, name), nil
}

func (u *fileWriter) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
	case tar.TypeChar, tar.TypeBlock:
		if !u.devices {
			return nil // as docker does in a user namespace
		}
	default:
		return fmt.Errorf("entry of type %q%w", h.Typeflag, hidden{errdefs.ErrInvalidArgument})
	}
	name, err := u.inDir(h.Name)
	if err != nil {
		return err
	}
	if path.Clean("/"+h.Name) == "/" {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("the name is the directory's own%w", hidden{errdefs.ErrInvalidArgument})
		}
		return nil // the directory itself stays as it is
	}
	parent, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	keep, err := u.clear(parent, base, h)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.mkdir(parent, base, name, keep, h)
	case tar.TypeReg:
		return u.file(parent, base, h, content)
	case tar.TypeLink:
		return u.link(parent, base, h)
	}
	return u.special(parent, base, h)
}

// parent opens a directory and makes what is missing of it.
func (u *fileWriter) parent(name string) (int, error) {
	fd, err := u.f.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) || name == "/" {
		return fd, err
	}
	above, err := u.parent(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if err := unix.Mkdirat(above, path.Base(name), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err = u.f.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	return fd, u.own(fd, 0, 0)
}

// clear removes what is in the way of an entry; keep says that it is a directory that stays.
func (u *fileWriter) clear(parent int, base string, h *tar.Header) (keep bool, err error) {
	var st unix.Stat_t
	if err := sys.LstatAt(parent, base, &st); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if u.o.KeepKinds && isDir != (h.Typeflag == tar.TypeDir) {
		if isDir { // docker's words
			return false, fmt.Errorf("cannot overwrite directory %q with non-directory %q%w", base, u.dir, hidden{errdefs.ErrInvalidArgument})
		}
		return false, fmt.Errorf("cannot overwrite non-directory %q with directory %q%w", base, u.dir, hidden{errdefs.ErrInvalidArgument})
	}
	if isDir && h.Typeflag == tar.TypeDir {
		return true, nil
	}
	return false, sys.RemoveAllAt(parent, base)
}

func (u *fileWriter) mkdir(parent int, base, name string, keep bool, h *tar.Header) error {
	if !keep {
		if err := unix.Mkdirat(parent, base, 0o700); err != nil {
			return err
		}
	}
	fd, err := sys.OpenDirAt(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if len(u.late) < maxLateTimes {
		u.late = append(u.late, lateTime{name, h.ModTime})
	}
	return u.dress(fd, h)
}

func (u *fileWriter) file(parent int, base string, h *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(fdWriter(fd), content)
	if err == nil {
		err = u.dress(fd, h)
	}
	return errors.Join(err, unix.Close(fd))
}

// fdWriter writes to a file without giving it to the runtime's poller.
type fdWriter int

func (fd fdWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = unix.Write(int(fd), p[n:])
		n += max(m, 0)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	return n, err
}

func (u *fileWriter) link(parent int, base string, h *tar.Header) error {
	target, err := u.inDir(h.Linkname)
	if err != nil {
		return err
	}
	if target == "/" { // whose base name is no name
		return pathError("link", h.Linkname, unix.EPERM)
	}
	dir, err := u.f.open(path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return pathError("link", h.Linkname, err)
	}
	defer unix.Close(dir)
	return pathError("link", h.Linkname, unix.Linkat(dir, path.Base(target), parent, base, 0))
}

// special makes links, pipes and devices. Nothing of them is opened for more than a look.
func (u *fileWriter) special(parent int, base string, h *tar.Header) error {
	var err error
	switch h.Typeflag {
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, parent, base)
	case tar.TypeFifo:
		err = unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = unix.Mknodat(parent, base, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(parent, base, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.dress(fd, h)
}

// own sets the owner of an open file.
func (u *fileWriter) own(fd, uid, gid int) error {
	if !u.o.CopyOwners {
		uid, gid = int(u.o.UID), int(u.o.GID)
	}
	if uid < 0 || gid < 0 || uid >= math.MaxUint32 || gid >= math.MaxUint32 {
		return fmt.Errorf("owner %d:%d%w", uid, gid, hidden{errdefs.ErrInvalidArgument})
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", uid, gid, err)
	}
	return nil
}

// dress gives an open file what else the entry says. A change of owner takes the setuid bit and
// capabilities, so they come after it, and writing the content the time.
func (u *fileWriter) dress(fd int, h *tar.Header) error {
	if err := u.own(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(procPath(fd), uint32(h.Mode&0o7777)); err != nil {
			return fmt.Errorf("mode %o: %w", h.Mode, err)
		}
	}
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !OwnXattr(attr) || h.Typeflag == tar.TypeSymlink {
			continue
		}
		err := unix.Setxattr(procPath(fd), attr, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) { // as docker does
			return fmt.Errorf("attribute %.80s: %w", attr, err)
		}
	}
	return sys.UtimensFd(fd, fileTimes(h.ModTime))
}

// fileTimes are what the kernel takes for an entry's time.
func fileTimes(t time.Time) *[2]unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil || t.IsZero() {
		ts = unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return &[2]unix.Timespec{ts, ts}
}

// lateTimes gives directories their times back, which is best effort.
func (u *fileWriter) lateTimes() error {
	for i := len(u.late) - 1; i >= 0; i-- {
		l := u.late[i]
		fd, err := u.f.open(l.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		_ = sys.UtimensFd(fd, fileTimes(l.time))
		unix.Close(fd)
	}
	return u.ctx.Err()
}
