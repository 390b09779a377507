// Package tree reads directories through a view that no symbolic link leaves:
// one plain directory, or the merge of a stack of layers' trees, without
// mounting anything.
//
//   - Paths are relative to the view's root, with or without a leading slash;
//     "", "." and "/" name the root.
//   - Lstat, ReadDir, Readlink and Open follow no symbolic link, in no
//     component. Resolve follows them, in user space and against the merged
//     view, so that neither an absolute target nor ".." names anything outside.
//   - A Stack's trees do not change while it is open: it remembers what
//     it has listed. A Dir is read anew at each call.
//
// Each tree of a stack is a directory, whose whiteouts and opaque directories are
// the kernel's overlay format in its userxattr flavour (see sys.OpaqueAttr), or an
// image of one (package lower).
package tree

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/lower"
	"den/internal/oci"
)

// FS is a read-only view of a file tree. It may be used by several goroutines.
// A path that is missing, also because a parent is no directory, is
// errdefs.ErrNotFound.
type FS interface {
	// Lstat describes what path names. A hard link is described as the file
	// that it is.
	Lstat(path string) (*oci.Entry, error)
	// ReadDir lists a directory in byte order, without "." and "..". The
	// entries' paths are relative to the view's root.
	ReadDir(path string) ([]*oci.Entry, error)
	// Readlink returns the target of a symbolic link.
	Readlink(path string) (string, error)
	// Open opens a regular file. In a directory it is an *os.File.
	Open(path string) (io.ReadCloser, error)
	// Close frees what the view holds open. Files it opened stay open.
	Close() error
}

// found is an entry with the identity of its file.
type found struct {
	oci.Entry
	dev, ino uint64
	links    uint64
}

// local is what the views of this package can do beyond FS.
type local interface {
	// lstat is Lstat without extended attributes, for following links.
	lstat(path string) (*found, error)
	// readDir is ReadDir with identities.
	readDir(path string) ([]*found, error)
}

// clean brings a path into the form of oci.Entry.Path, but "" for the root.
// ".." is clamped at the root, as for a process in a chroot.
func clean(path string) string {
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "", ".":
		case "..":
			parts = parts[:max(len(parts)-1, 0)]
		default:
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/")
}

// entryPath is clean's result as an entry has it.
func entryPath(path string) string {
	if path == "" {
		return "."
	}
	return path
}

func dirOf(p string) string  { return p[:max(strings.LastIndexByte(p, '/'), 0)] }
func baseOf(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// missing is the error for a path that is not there. It is both of den's class
// and of the standard library's.
func missing(op, path string) error {
	return fmt.Errorf("%s %.200s: %w", op, entryPath(path), errNotExist{})
}

type errNotExist struct{}

// Error says what is wrong, as the system does.
func (errNotExist) Error() string { return "no such file or directory" }

// Is makes the error one of both classes.
func (errNotExist) Is(target error) bool {
	return target == errdefs.ErrNotFound || target == fs.ErrNotExist
}

// NotFound marks the error for errdefs.IsNotFound.
func (errNotExist) NotFound() {}

// wrong is the error for a path that is of another type than asked for.
func wrong(op, path, want string) error {
	return fmt.Errorf("%s %.200s: not a %s: %w", op, entryPath(path), want, errdefs.ErrInvalidArgument)
}

// gone reports whether an errno means that the path names nothing.
func gone(err error) bool {
	return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP
}

// stat describes the file name in d; marks says whether it may stand for a device.
func stat(d lower.Dir, name, path string, marks bool) (*found, error) {
	f, err := statOnly(d, name, path)
	if err != nil {
		return nil, err
	}
	a, err := d.Attrs(name)
	if err != nil {
		return nil, &os.PathError{Op: "getxattr", Path: path, Err: err}
	}
	f.Xattrs = a.Keep
	if n, ok := a.Node(f.Mode, f.UID, f.Size); ok && marks {
		f.Mode, f.UID, f.GID, f.Rdev = n.Mode, n.UID, n.GID, n.Rdev
	}
	return f, nil
}

// statOnly is stat without the attributes.
func statOnly(d lower.Dir, name, path string) (*found, error) {
	var st unix.Stat_t
	if err := d.Stat(name, &st); err != nil {
		if gone(err) {
			return nil, missing("lstat", path)
		}
		return nil, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	f := foundOf(path, &st)
	if f.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := d.Readlink(name)
		if err != nil {
			return nil, &os.PathError{Op: "readlink", Path: path, Err: err}
		}
		f.Link = target
	}
	return f, nil
}

func foundOf(path string, st *unix.Stat_t) *found {
	f := &found{
		Entry: oci.Entry{Path: entryPath(path), Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix())},
		dev:   st.Dev, ino: st.Ino, links: uint64(st.Nlink),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		f.Rdev = st.Rdev
	}
	return f
}

// openFile opens the regular file name in d.
func openFile(d lower.Dir, name, path string) (io.ReadCloser, error) {
	f, err := d.Open(name)
	switch {
	case err == unix.ENXIO, err == unix.ELOOP: // a socket, a device without a driver, a link
		return nil, wrong("open", path, "regular file")
	case err != nil && gone(err):
		return nil, missing("open", path)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	case f.Content != nil:
		return f.Content, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.FD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(f.FD)
		if err != nil {
			return nil, &os.PathError{Op: "fstat", Path: path, Err: err}
		}
		return nil, wrong("open", path, "regular file")
	}
	return os.NewFile(uintptr(f.FD), path), nil
}

func readlink(f *found, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if f.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", wrong("readlink", f.Path, "symbolic link")
	}
	return f.Link, nil
}

func entries(list []*found, err error) ([]*oci.Entry, error) {
	if err != nil {
		return nil, err
	}
	out := make([]*oci.Entry, len(list))
	for i, f := range list {
		out[i] = &f.Entry
	}
	return out, nil
}
