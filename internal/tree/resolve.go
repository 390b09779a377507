package tree

import (
	"fmt"
	iofs "io/fs"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

const (
	// maxLinks bounds the symbolic links on one path; what BuildKit allows.
	maxLinks = 255
	// maxPath bounds a path while links grow it.
	maxPath = 64 << 10
)

// Resolve follows all symbolic links of path, as a process would whose root
// directory is the view's: an absolute target begins at the root, ".." ends
// there. What does not exist is kept as it is, so that the result can be
// created. The root is ".".
func Resolve(fs FS, path string) (string, error) {
	p, err := resolve(fs, path)
	return entryPath(p), err
}

// ResolveParent follows the links of all components but the last. A path that
// ends in "." or ".." is resolved whole.
func ResolveParent(fs FS, path string) (string, error) {
	path = strings.TrimRight(path, "/")
	base := baseOf(path)
	if base == "" || base == "." || base == ".." {
		return Resolve(fs, path)
	}
	dir, err := resolve(fs, dirOf(path))
	if err != nil {
		return "", err
	}
	return joinPath(dir, base), nil
}

func resolve(fs FS, path string) (string, error) {
	done, exists := "", true
	rest := path
	for links := 0; rest != ""; {
		part, more, _ := strings.Cut(rest, "/")
		rest = more
		switch part {
		case "", ".":
			continue
		case "..":
			done, exists = dirOf(done), true
			continue
		}
		next := joinPath(done, part)
		if !exists {
			done = next
			continue
		}
		mode, target, err := kind(fs, next)
		switch {
		case errdefs.IsNotFound(err):
			exists = false
		case err != nil:
			return "", err
		case mode&unix.S_IFMT == unix.S_IFLNK:
			if links++; links > maxLinks || len(target)+len(rest) > maxPath {
				return "", fmt.Errorf("resolve %.200s: too many symbolic links: %w", path, errdefs.ErrInvalidArgument)
			}
			if strings.HasPrefix(target, "/") {
				done = ""
			}
			rest = target + "/" + rest
			continue
		}
		done = next
	}
	return done, nil
}

func kind(fs FS, path string) (mode uint32, target string, err error) {
	if l, ok := fs.(local); ok {
		f, err := l.lstat(path)
		if err != nil {
			return 0, "", err
		}
		return f.Mode, f.Link, nil
	}
	e, err := fs.Lstat(path)
	if err != nil {
		return 0, "", err
	}
	if e.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err = fs.Readlink(path)
	}
	return e.Mode, target, err
}

// inode is the identity of a file.
type inode struct{ dev, ino uint64 }

// Walk calls fn for root, which it does not follow, and for everything below
// it, parents first, names in byte order. The second name of a file within the
// walk comes as a hard link to the first. fn may return the standard library's
// fs.SkipDir and fs.SkipAll.
func Walk(fs FS, root string, fn func(*oci.Entry) error) error {
	e, err := fs.Lstat(root)
	if err != nil {
		return err
	}
	w := walker{fs: fs, fn: fn, seen: map[inode]string{}}
	if err := w.one(&found{Entry: *e}); err != nil && err != iofs.SkipAll && err != iofs.SkipDir {
		return err
	}
	return nil
}

type walker struct {
	fs   FS
	fn   func(*oci.Entry) error
	seen map[inode]string
}

func (w *walker) one(f *found) error {
	isDir := f.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && f.links > 1 {
		key := inode{f.dev, f.ino}
		if first, ok := w.seen[key]; ok {
			f.Hardlink, f.Link, f.Size = true, first, 0
		} else {
			w.seen[key] = f.Path
		}
	}
	if err := w.fn(&f.Entry); err != nil || !isDir {
		return err
	}
	list, err := w.list(f.Path)
	if err != nil {
		return err
	}
	for _, c := range list {
		err := w.one(c)
		if err == iofs.SkipDir {
			if c.Mode&unix.S_IFMT != unix.S_IFDIR {
				return nil // the rest of this directory
			}
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) list(path string) ([]*found, error) {
	if l, ok := w.fs.(local); ok {
		return l.readDir(path)
	}
	list, err := w.fs.ReadDir(path)
	out := make([]*found, len(list))
	for i, e := range list {
		out[i] = &found{Entry: *e}
	}
	return out, err
}
