package tree

import (
	"io"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/lower"
	"den/internal/oci"
	"den/internal/sys"
)

// dir is one plain directory.
type dir struct {
	root *os.File
	of   func(fd int) lower.Dir
}

// Dir is the view of one plain directory, read anew at each call. Nothing in it
// has an overlay's meaning.
func Dir(root string) (FS, error) { return openDir(root, lower.Of) }

// Recorded is Dir for a directory in which this process keeps records of what
// files should be, because it may not chown. See sys.InodeAttr.
func Recorded(root string) (FS, error) { return openDir(root, lower.OfRecorded) }

func openDir(root string, of func(fd int) lower.Dir) (FS, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	return &dir{root: os.NewFile(uintptr(fd), root), of: of}, nil
}

// in calls fn with the open directory path.
func (d *dir) in(op, path string, fn func(d lower.Dir) error) error {
	raw, err := d.root.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(root uintptr) {
		fd, err := sys.OpenDirBeneath(int(root), "./"+path)
		if err != nil {
			if inner = err; gone(err) {
				inner = missing(op, path)
			}
			return
		}
		sub := d.of(fd)
		inner = fn(sub)
		sub.Close()
	})
	if err != nil {
		return err
	}
	return inner
}

// at calls fn with the open directory of path and path's name in it.
func (d *dir) at(op, path string, fn func(d lower.Dir, name, path string) error) error {
	path = clean(path)
	if path == "" {
		return d.in(op, "", func(d lower.Dir) error { return fn(d, ".", "") })
	}
	return d.in(op, dirOf(path), func(d lower.Dir) error { return fn(d, baseOf(path), path) })
}

// Lstat describes a file.
func (d *dir) Lstat(path string) (e *oci.Entry, err error) {
	err = d.at("lstat", path, func(in lower.Dir, name, path string) error {
		f, err := stat(in, name, path, false)
		if err == nil {
			e = &f.Entry
		}
		return err
	})
	return e, err
}

func (d *dir) lstat(path string) (f *found, err error) {
	err = d.at("lstat", path, func(in lower.Dir, name, path string) (err error) {
		f, err = statOnly(in, name, path)
		return err
	})
	return f, err
}

// ReadDir lists a directory.
func (d *dir) ReadDir(path string) ([]*oci.Entry, error) { return entries(d.readDir(path)) }

func (d *dir) readDir(path string) (list []*found, err error) {
	path = clean(path)
	err = d.in("read directory", path, func(in lower.Dir) error {
		names, err := in.Names()
		if err != nil {
			return &os.PathError{Op: "getdents", Path: path, Err: err}
		}
		slices.Sort(names)
		for _, name := range names {
			f, err := stat(in, name, joinPath(path, name), false)
			if errdefs.IsNotFound(err) {
				continue // removed meanwhile, or a whiteout that the kernel lists in a directory of one layer only
			}
			if err != nil {
				return err
			}
			list = append(list, f)
		}
		return nil
	})
	return list, err
}

// Readlink returns a link's target.
func (d *dir) Readlink(path string) (string, error) { return readlink(d.lstat(path)) }

// Open opens a regular file.
func (d *dir) Open(path string) (rc io.ReadCloser, err error) {
	err = d.at("open", path, func(in lower.Dir, name, path string) error {
		f, err := openFile(in, name, path)
		if err == nil {
			rc = f
		}
		return err
	})
	return rc, err
}

// Close closes the root.
func (d *dir) Close() error { return d.root.Close() }
