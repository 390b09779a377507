// Package lower opens one tree of a stack, in whichever of two forms it is on
// disk: a directory in the format of overlay file systems, or the image of one
// (package erofs). Who reads through it need not know.
//
// A path that is a regular file is an image, a path that is a directory is a
// directory; den makes both names itself. Nothing here follows a symbolic link,
// and nothing changes a tree.
package lower

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A Dir is an open directory of a tree. Errors are errnos as of the system
// calls, or say that an image is broken. Names and Stat of one Dir may be used by
// several goroutines as long as none closes it.
type Dir interface {
	// Names lists the directory, without "." and "..", in any order.
	Names() ([]string, error)
	// Stat describes a name itself; "." is the directory. A device and inode
	// number mean the same file within one stack.
	Stat(name string, st *unix.Stat_t) error
	// Attrs are a name's extended attributes and marks.
	Attrs(name string) (sys.FileAttrs, error)
	// Opaque says whether the directory hides those of the trees below.
	Opaque() (bool, error)
	// Readlink returns the target of a symbolic link.
	Readlink(name string) (string, error)
	// OpenDir opens the directory name; no directory is ENOTDIR or ELOOP.
	OpenDir(name string) (Dir, error)
	// OpenBeneath opens the directory of a clean relative path.
	OpenBeneath(path string) (Dir, error)
	// Open opens a file for reading. What is opened outlives the Dir.
	Open(name string) (File, error)
	// Close frees the directory.
	Close()
}

// A File is an open file of a tree: one of its fields is set.
type File struct {
	// FD is a descriptor that is the caller's to close, -1 in an image. What it
	// is of may be no regular file.
	FD int
	// Content is a regular file's, in an image.
	Content io.ReadCloser
}

// Open opens the root of the tree at path.
func Open(path string) (Dir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return Of(fd), nil
	}
	_ = unix.Close(fd)
	return openImage(path)
}

// IsImage reports whether the tree at path is an image.
func IsImage(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return info.Mode().IsRegular(), nil
}

// Of is the directory that fd is open on. Close closes it.
func Of(fd int) Dir { return &directory{fd} }

// directory is a directory of a tree that is one.
type directory struct{ fd int }

func (d *directory) Names() ([]string, error) { return sys.ReadNames(d.fd) }

func (d *directory) Stat(name string, st *unix.Stat_t) error {
	if name == "." {
		return unix.Fstat(d.fd, st)
	}
	return sys.LstatAt(d.fd, name, st)
}

func (d *directory) Attrs(name string) (sys.FileAttrs, error) {
	if name == "." {
		return sys.FileAttrsOf(d.fd)
	}
	return sys.FileAttrsAt(d.fd, name)
}

func (d *directory) Opaque() (bool, error) {
	value, err := sys.FgetXattr(d.fd, sys.OpaqueAttr)
	if err == unix.ENODATA || err == unix.ENOTSUP {
		return false, nil
	}
	return string(value) == "y", err
}

func (d *directory) Readlink(name string) (string, error) { return sys.ReadlinkAt(d.fd, name) }

func (d *directory) OpenDir(name string) (Dir, error) { return opened(sys.OpenDirAt(d.fd, name)) }

func (d *directory) OpenBeneath(path string) (Dir, error) {
	return opened(sys.OpenDirBeneath(d.fd, "./"+path))
}

func opened(fd int, err error) (Dir, error) {
	if err != nil {
		return nil, err
	}
	return Of(fd), nil
}

func (d *directory) Open(name string) (File, error) {
	fd, err := sys.OpenFileAt(d.fd, name)
	return File{FD: fd}, err
}

func (d *directory) Close() { _ = unix.Close(d.fd) } // opened for reading: nothing can be lost
