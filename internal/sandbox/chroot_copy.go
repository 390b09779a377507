package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/sys"
)

// copied is a copy of source at path, with what is needed to carry changes back.
type copied struct {
	source, path string
	dir          bool
	before       map[string]stamp // by path below the copy; "." for a file or the top
}

// A stamp changes when a file does: no process can set the ctime.
type stamp struct {
	ino, size    uint64
	mode         uint32
	ctime, mtime unix.Timespec
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return stamp{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return stamp{st.Ino, uint64(st.Size), st.Mode, st.Ctim, st.Mtim}, nil
}

// copyIn copies a file or a tree to path, where nothing is.
func copyIn(ctx context.Context, source, path string) (*copied, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	c := &copied{source: source, path: path, dir: info.IsDir()}
	if !c.dir {
		err = copyFile(source, path)
	} else if err = os.Mkdir(path, 0o700); err == nil {
		err = layer.Create(ctx, path, layer.WalkPlain(source), layer.UnpackOptions{InUserns: !sys.MakesDevices()})
	}
	if err == nil {
		c.before, err = stamps(path)
	}
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", source, err)
	}
	return c, nil
}

// copyFile copies a regular file with its owner, mode and times.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := errors.Join(out.Chown(int(st.Uid), int(st.Gid)), unix.Fchmod(int(out.Fd()), st.Mode&0o7777)); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// stamps lists a tree, or a file as ".".
func stamps(root string) (map[string]stamp, error) {
	all := map[string]stamp{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err == nil {
			all[rel], err = stampOf(p)
		}
		return err
	})
	return all, err
}

// back makes source what the copy has become. Only what has changed is touched, and each
// name changes at once, so that whoever uses source meanwhile sees whole files.
func (c *copied) back() error {
	err := c.carry()
	if err != nil {
		return fmt.Errorf("copy back to %s: %w", c.source, err)
	}
	return nil
}

func (c *copied) carry() error {
	after, err := stamps(c.path)
	if err != nil {
		return err
	}
	changed := map[string]bool{}
	for rel, s := range after {
		if c.before[rel] != s {
			changed[rel] = true
		}
	}
	if !c.dir {
		if !changed["."] {
			return nil
		}
		return overwrite(c.path, c.source)
	}
	top, err := os.OpenRoot(c.source)
	if err != nil {
		return err
	}
	defer top.Close()
	for rel := range c.before {
		_, still := after[rel]
		_, parentStill := after[path.Dir(rel)]
		if !still && parentStill {
			if err := top.RemoveAll(rel); err != nil {
				return err
			}
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return c.carryChanged(top, changed)
}

// carryChanged builds what has changed beside its place in source and renames it there.
func (c *copied) carryChanged(top *os.Root, changed map[string]bool) (err error) {
	tmp, err := os.MkdirTemp(c.source, ".den-chroot-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.RemoveTree(tmp)) }()
	for rel := range changed { // with the directories that lead there
		for p := path.Dir(rel); !changed[p]; p = path.Dir(p) {
			changed[p] = true
		}
	}
	err = layer.Create(context.Background(), tmp, only(layer.WalkPlain(c.path), changed), layer.UnpackOptions{InUserns: !sys.MakesDevices()})
	if err != nil {
		return err
	}
	return merge(top, filepath.Base(tmp), ".")
}

func only(files iter.Seq2[layer.File, error], paths map[string]bool) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		for f, err := range files {
			if err == nil && !paths[f.Path] {
				continue
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

// merge moves the members of from/rel, both below top, into rel, and gives rel the
// owner, mode and times of from/rel.
func merge(top *os.Root, from, rel string) error {
	dir, err := top.Open(path.Join(from, rel))
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	members, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, m := range members {
		name := path.Join(rel, m.Name())
		have, err := top.Lstat(name)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		case err == nil && have.IsDir() && m.IsDir():
			err = merge(top, from, name)
		case err == nil && have.IsDir() != m.IsDir():
			if err = top.RemoveAll(name); err == nil {
				err = top.Rename(path.Join(from, name), name)
			}
		default:
			err = top.Rename(path.Join(from, name), name)
		}
		if err != nil {
			return err
		}
	}
	st := info.Sys().(*syscall.Stat_t)
	return errors.Join(top.Lchown(rel, int(st.Uid), int(st.Gid)), top.Chmod(rel, info.Mode()), top.Chtimes(rel, info.ModTime(), info.ModTime()))
}

// overwrite gives a file another's content, in place: it may be one that is mounted
// elsewhere, too.
func overwrite(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
