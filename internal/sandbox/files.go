package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Files is a Filer for what is in a directory, which is taken for the root directory.
// Whoever changes the tree meanwhile can make an operation fail and not lead it elsewhere:
// every path is resolved by openat2(2) in the root, and what is read or written
// is a descriptor whose kind was looked at.
type Files struct{ root *os.File }

// NewFiles returns the Filer for root, which the caller closes after its use.
func NewFiles(root *os.File) *Files { return &Files{root} }

// Stat describes name.
func (f *Files) Stat(_ context.Context, name string) (FileStat, error) {
	fd, err := f.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return FileStat{}, pathError("stat", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return FileStat{}, pathError("stat", name, err)
	}
	s := FileStat{
		Name: path.Base(path.Clean("/" + name)), Size: st.Size, Mode: FileMode(st.Mode),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	if s.Mode&fs.ModeSymlink != 0 {
		if s.LinkTarget, err = readlink(fd); err != nil {
			return FileStat{}, pathError("readlink", name, err)
		}
	}
	return s, nil
}

// open opens name inside the root. A slash at its end means a directory, as everywhere.
func (f *Files) open(name string, flags uint64) (int, error) {
	if name == "" {
		name = "/"
	}
	return sys.OpenInRoot(int(f.root.Fd()), name, flags)
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// readlink reads the symbolic link that an O_PATH descriptor is.
func readlink(fd int) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	return string(b[:max(n, 0)]), err
}

// procPath names an open file for calls that do not take an O_PATH descriptor.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// FileMode translates a mode of stat(2).
func FileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	}
	for bit, v := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= v
		}
	}
	return m
}

// openRoot is the root directory of the sandbox's first process, with all that is mounted in it.
func (s *running) openRoot() (*os.File, error) {
	name := fmt.Sprintf("/proc/%d/root", s.pid)
	if s.n.chroot {
		name = s.stubs.root.Source
	}
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("sandbox %s: its root directory: %w: that needs CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE)", s.id, err)
	case err != nil && !errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("sandbox %s: its root directory: %w", s.id, err)
	}
	// The id is the payload's as long as it is the holder's child.
	if err != nil || parent(s.pid) != s.holder {
		if err == nil {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("sandbox %s: its root directory: %w", s.id, os.ErrProcessDone)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Stat is Filer's.
func (s *running) Stat(ctx context.Context, name string) (FileStat, error) {
	root, err := s.openRoot()
	if err != nil {
		return FileStat{}, err
	}
	defer root.Close()
	return NewFiles(root).Stat(ctx, name)
}

// ReadTar is Filer's.
func (s *running) ReadTar(ctx context.Context, name, as string, w io.Writer) error {
	root, err := s.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	return NewFiles(root).ReadTar(ctx, name, as, w)
}

// WriteTar is Filer's.
func (s *running) WriteTar(ctx context.Context, name string, r io.Reader, o WriteTarOptions) error {
	root, err := s.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	return NewFiles(root).WriteTar(ctx, name, r, o)
}
