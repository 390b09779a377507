package sys

import (
	"errors"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxXattr is the longest attribute value and the longest list of names that
// the kernel has (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MaxXattr = 64 << 10

// xattrArgs is struct xattr_args of setxattrat(2) and getxattrat(2).
type xattrArgs struct {
	value *byte // the kernel's is 64 bits wide on every machine
	_     [8 - unsafe.Sizeof(uintptr(0))]byte
	size  uint32
	flags uint32
}

// byProc names a file for the calls before Linux 6.13 that know no directory
// descriptors. The l-calls do not follow name itself, and nobody can put a
// link in the place of the descriptor.
func byProc(dirfd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

// filtered says that a system call does not exist or that seccomp denies it.
// A true EPERM is met again on the older way.
func filtered(errno unix.Errno) bool { return errno == unix.ENOSYS || errno == unix.EPERM }

// ListXattrAt lists the names of the extended attributes of name in dirfd,
// also of a symbolic link. A file system without them has none.
func ListXattrAt(dirfd int, name string) ([]string, error) {
	return listXattr(func(buf []byte) (int, error) { return listxattrat(dirfd, name, buf) })
}

// ListXattr is ListXattrAt for a path, and follows links.
func ListXattr(path string) ([]string, error) {
	return listXattr(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
}

// FlistXattr is ListXattrAt for an open file.
func FlistXattr(fd int) ([]string, error) {
	return listXattr(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
}

func listXattr(list func([]byte) (int, error)) ([]string, error) {
	var small [512]byte
	n, err := list(small[:])
	buf := small[:]
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, MaxXattr)
		n, err = list(buf)
	}
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return nil, nil
	case err != nil:
		return nil, err
	case n == 0:
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}

func listxattrat(dirfd int, name string, buf []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0)
	if filtered(errno) {
		return unix.Llistxattr(byProc(dirfd, name), buf)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// GetXattrAt returns the value of one extended attribute of name in dirfd.
func GetXattrAt(dirfd int, name, attr string) ([]byte, error) {
	return getXattr(func(buf []byte) (int, error) { return getxattrat(dirfd, name, attr, buf) })
}

// GetXattrInto is GetXattrAt into buf; a longer value is ERANGE.
func GetXattrInto(dirfd int, name, attr string, buf []byte) (int, error) {
	return getxattrat(dirfd, name, attr, buf)
}

// FgetXattr is GetXattrAt for an open file.
func FgetXattr(fd int, attr string) ([]byte, error) {
	return getXattr(func(buf []byte) (int, error) { return unix.Fgetxattr(fd, attr, buf) })
}

func getXattr(get func([]byte) (int, error)) ([]byte, error) {
	var small [512]byte
	n, err := get(small[:])
	buf := small[:]
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, MaxXattr)
		n, err = get(buf)
	}
	if err != nil {
		return nil, err
	}
	return append([]byte{}, buf[:n]...), nil
}

func getxattrat(dirfd int, name, attr string, buf []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{value: &buf[0], size: uint32(len(buf))}
	n, _, errno := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if filtered(errno) {
		return unix.Lgetxattr(byProc(dirfd, name), attr, buf)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// SetXattrAt sets an extended attribute of name in dirfd itself, also when it
// is a symbolic link.
func SetXattrAt(dirfd int, name, attr string, value []byte) error {
	return unix.Lsetxattr(byProc(dirfd, name), attr, value, 0)
}

// RemoveXattrAt removes an extended attribute of name in dirfd.
func RemoveXattrAt(dirfd int, name, attr string) error {
	return unix.Lremovexattr(byProc(dirfd, name), attr)
}
