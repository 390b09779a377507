package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
)

// ExportLocal writes the files of images into a directory (type=local), over
// what is there and owned by the caller, as docker build -o does. No link in
// the images or in the directory leads out of it.
func (m *Images) ExportLocal(ctx context.Context, dir string, images []*Image, o FilesOptions) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("export files: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("export files: %w", err)
	}
	defer root.Close()
	to := &localDir{root: root, from: map[string]string{}}
	for _, img := range images {
		if err := m.exportPart(ctx, to, img, o); err != nil {
			return fmt.Errorf("export files: %w", err)
		}
	}
	return nil
}

func (m *Images) exportPart(ctx context.Context, to *localDir, img *Image, o FilesOptions) error {
	p, err := m.part(ctx, img, o)
	if err != nil {
		return err
	}
	defer closeTrees(p.trees)
	to.dirs = nil
	for f, err := range p.files(o) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = to.claim(&f, img.Platform)
		}
		if err == nil {
			err = to.write(&f)
		}
		if err != nil {
			return err
		}
	}
	return to.finish()
}

// localDir is the directory that files are written into.
type localDir struct {
	root *os.Root
	from map[string]string // which platform a path came from
	dirs []oci.Entry       // their modes and times come last
}

// claim refuses the same file from two platforms.
func (d *localDir) claim(f *layer.File, p oci.Platform) error {
	if f.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	name := p.OS + "/" + p.Architecture + p.Variant
	if other, ok := d.from[f.Path]; ok && other != name {
		return fmt.Errorf("cannot overwrite %s from %s with %s unless platforms are split: %w", f.Path, other, name, errdefs.ErrInvalidArgument)
	}
	d.from[f.Path] = name
	return nil
}

// write makes one file.
func (d *localDir) write(f *layer.File) error {
	kind := f.Mode & unix.S_IFMT
	st, err := d.root.Lstat(f.Path)
	switch {
	case err == nil && kind == unix.S_IFDIR && st.IsDir():
		d.dirs = append(d.dirs, f.Entry)
		return nil
	case err == nil:
		if err := d.root.RemoveAll(f.Path); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	switch {
	case f.Hardlink:
		return d.root.Link(f.Link, f.Path)
	case kind == unix.S_IFDIR:
		d.dirs = append(d.dirs, f.Entry)
		return d.root.Mkdir(f.Path, 0o700)
	case kind == unix.S_IFLNK:
		return d.root.Symlink(f.Link, f.Path)
	case kind == unix.S_IFREG:
		return d.regular(f)
	case kind == unix.S_IFSOCK:
		return nil
	}
	return d.node(f)
}

func (d *localDir) regular(f *layer.File) error {
	out, err := d.root.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if f.Open != nil {
		var in io.ReadCloser
		if in, err = f.Open(); err == nil {
			_, err = io.Copy(out, in)
			err = release(err, in)
		}
	}
	if err == nil {
		setXattrs(out, f.Xattrs)
		err = out.Chmod(fileMode(f.Mode))
	}
	if err := release(err, out); err != nil {
		return err
	}
	return d.root.Chtimes(f.Path, f.ModTime, f.ModTime)
}

// node makes a device or a FIFO.
func (d *localDir) node(f *layer.File) error {
	dir, err := d.root.Open(path.Dir(f.Path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mknodat(int(dir.Fd()), path.Base(f.Path), f.Mode, int(f.Rdev)); err != nil {
		return &fs.PathError{Op: "mknod", Path: f.Path, Err: err}
	}
	return nil
}

// finish sets modes and times of directories, deepest first: a read-only one
// takes no more files, and each file changes the time.
func (d *localDir) finish() error {
	for _, e := range slices.Backward(d.dirs) {
		f, err := d.root.Open(e.Path)
		if err != nil {
			return err
		}
		setXattrs(f, e.Xattrs)
		err = f.Chmod(fileMode(e.Mode))
		if err := release(err, f); err != nil {
			return err
		}
		if err := d.root.Chtimes(e.Path, time.Time{}, e.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// setXattrs sets what may be set: the caller rarely owns the right to all, and
// docker's export drops what it cannot keep too.
func setXattrs(f *os.File, xattrs map[string][]byte) {
	for name, value := range xattrs {
		_ = unix.Fsetxattr(int(f.Fd()), name, value, 0)
	}
}

// fileMode turns st_mode bits into Go's.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, set := range map[uint32]fs.FileMode{
		unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky,
	} {
		if mode&bit != 0 {
			m |= set
		}
	}
	return m
}
