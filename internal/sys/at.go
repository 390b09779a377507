package sys

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dirFlags opens a directory itself, never what a symbolic link names.
const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// retry calls fn until it was not interrupted by a signal.
func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// OpenDirAt opens the directory name in dirfd. A symbolic link is ELOOP or
// ENOTDIR.
func OpenDirAt(dirfd int, name string) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, name, dirFlags, 0)
		return err
	})
	return fd, err
}

// OpenDirBeneath opens the directory path below dirfd and passes no symbolic
// link on the way. Where openat2(2) is missing or filtered it walks.
func OpenDirBeneath(dirfd int, path string) (fd int, err error) {
	how := unix.OpenHow{Flags: dirFlags, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	err = retry(func() error {
		fd, err = unix.Openat2(dirfd, path, &how)
		return err
	})
	// EAGAIN: something was renamed meanwhile and the kernel is not sure.
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EAGAIN) {
		return walkDir(dirfd, path)
	}
	return fd, err
}

func walkDir(dirfd int, path string) (int, error) {
	fd, err := OpenDirAt(dirfd, ".")
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			return -1, err
		}
		switch name {
		case "", ".":
			continue
		case "..":
			_ = unix.Close(fd)
			return -1, unix.EXDEV
		}
		var next int
		next, err = OpenDirAt(fd, name)
		_ = unix.Close(fd)
		fd = next
	}
	return fd, err
}

// OpenFileAt opens the file name in dirfd for reading. A symbolic link is
// ELOOP; a named pipe does not block.
func OpenFileAt(dirfd int, name string) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// LstatAt describes name in dirfd itself, also when it is a symbolic link.
func LstatAt(dirfd int, name string, st *unix.Stat_t) error {
	return retry(func() error { return unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

// ReadlinkAt returns the target of the symbolic link name in dirfd.
func ReadlinkAt(dirfd int, name string) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dirfd, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Futimens sets the times of an open file; unix.UTIME_OMIT leaves one alone.
func Futimens(fd int, times *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// UtimensFd is Futimens for a descriptor that may be opened with O_PATH, also
// of a symbolic link (Linux 5.8).
func UtimensFd(fd int, times *[2]unix.Timespec) error {
	empty := [1]byte{}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(unsafe.Pointer(times)),
		unix.AT_EMPTY_PATH, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// RemoveAllAt removes name in dirfd with everything below it, directories
// without permissions included. What is gone already is no error. A name that is
// not one element of a path is EINVAL: the kernel takes "/" for its own root, whatever dirfd is.
func RemoveAllAt(dirfd int, name string) error {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return &os.PathError{Op: "unlinkat", Path: name, Err: unix.EINVAL}
	}
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return &os.PathError{Op: "unlinkat", Path: name, Err: err}
	}
	fd, derr := OpenDirAt(dirfd, name)
	if errors.Is(derr, fs.ErrPermission) {
		if derr = unix.Fchmodat(dirfd, name, 0o700, 0); derr == nil {
			fd, derr = OpenDirAt(dirfd, name)
		}
	}
	if derr != nil {
		return &os.PathError{Op: "unlinkat", Path: name, Err: err}
	}
	err = removeContent(fd)
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlinkat", Path: name, Err: err}
	}
	return nil
}

// removeContent empties the directory fd. The owner may lack the permissions
// on his own directory.
func removeContent(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&0o700 != 0o700 {
		_ = unix.Fchmod(fd, st.Mode&0o7777|0o700)
	}
	names, err := ReadNames(fd)
	if err != nil {
		return &os.PathError{Op: "getdents", Path: ".", Err: err}
	}
	for _, name := range names {
		if err := RemoveAllAt(fd, name); err != nil {
			return err
		}
	}
	return nil
}
