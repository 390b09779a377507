package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/snapshot"
	"den/internal/sys"
)

// maxUppers is how many trees of a container's own are stacked before they become one.
const maxUppers = 8

// upperTree is what an earlier run of a container wrote, as a tree of its stack.
type upperTree string

// Dirs is the tree's path.
func (u upperTree) Dirs() []string { return []string{string(u)} }

// Hold is empty: the container's directory keeps it.
func (u upperTree) Hold() []*os.File { return nil }

// DiffID is empty: it is no layer.
func (u upperTree) DiffID() oci.Digest { return "" }

// Close does nothing.
func (u upperTree) Close() error { return nil }

// own are the paths of the trees that the container wrote, top first. On the weak rungs
// one may be missing: the sandbox ended without a word.
func (r *record) own(dir string) []string {
	var out []string
	for _, u := range slices.Backward(r.Uppers) {
		path := filepath.Join(dir, u)
		if _, err := os.Lstat(path); err == nil {
			out = append(out, path)
		}
	}
	return out
}

// continues says that the next run goes on in the tree that the last one wrote.
func (e *Engine) continues() bool {
	_, continues := e.Driver.(snapshot.Continuer)
	return continues && !e.Store.ImageForm()
}

// firstUpper makes the tree that a new container writes, where all its runs write the same:
// its start need not change the record then.
func (c *container) firstUpper() error {
	if !c.engine.continues() {
		return nil
	}
	c.record.Uppers = []string{upperName(false, 0)}
	if err := os.Mkdir(filepath.Join(c.dir.Path(), c.record.Uppers[0]), 0o755); err != nil {
		return fmt.Errorf("container %s: %w", c.record.ID, err)
	}
	return nil
}

// nextUpper chooses the tree that this run writes: the last one goes on where the driver
// can do that, else there is a new one on top. The record gets it with the start.
func (c *container) nextUpper(ctx context.Context) error {
	dir, before := c.dir.Path(), c.record.Uppers
	c.dropMissing()
	if n := len(c.record.Uppers); n > 0 && c.engine.continues() {
		c.upper = c.record.Uppers[n-1]
	} else {
		if n >= maxUppers {
			if err := c.flatten(ctx); err != nil {
				return err
			}
		}
		c.upper = c.freeUpper()
		c.record.Uppers = append(slices.Clone(c.record.Uppers), c.upper)
		if !c.engine.Store.ImageForm() {
			if err := os.Mkdir(filepath.Join(dir, c.upper), 0o755); err != nil {
				return fmt.Errorf("container %s: %w", c.record.ID, err)
			}
		}
	}
	work := filepath.Join(dir, "work")
	if err := sys.RemoveTree(work); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container %s: %w", c.record.ID, err)
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		return fmt.Errorf("container %s: %w", c.record.ID, err)
	}
	if slices.Equal(c.record.Uppers, before) {
		return nil
	}
	// From now on the tree is found by whoever removes or reads the container.
	return c.record.write(dir)
}

// dropMissing forgets trees that were never written.
func (c *container) dropMissing() {
	c.record.Uppers = slices.DeleteFunc(slices.Clone(c.record.Uppers), func(u string) bool {
		_, err := os.Lstat(filepath.Join(c.dir.Path(), u))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// freeUpper is a name that no tree of the container has.
func (c *container) freeUpper() string {
	for n := 0; ; n++ {
		name := upperName(c.engine.Store.ImageForm(), n)
		if _, err := os.Lstat(filepath.Join(c.dir.Path(), name)); err != nil {
			return name
		}
	}
}

// treeOptions are for trees of the container's own.
func (e *Engine) treeOptions() layer.UnpackOptions {
	return layer.UnpackOptions{Image: e.Store.ImageForm(), InUserns: e.InUserns, Unnamed: true}
}

// flatten makes one tree of the container's own ones.
func (c *container) flatten(ctx context.Context) error {
	dir := c.dir.Path()
	old := c.record.own(dir)
	name := c.freeUpper()
	path := filepath.Join(dir, name)
	o := c.engine.treeOptions()
	if !o.Image {
		if err := os.Mkdir(path, 0o755); err != nil {
			return fmt.Errorf("container %s: %w", c.record.ID, err)
		}
	}
	if err := layer.Create(ctx, path, layer.WalkStack(old), o); err != nil {
		return errors.Join(fmt.Errorf("container %s: %w", c.record.ID, err), sys.RemoveTree(path))
	}
	c.record.Uppers = []string{name}
	errs := []error{c.record.write(dir)}
	for _, u := range old {
		errs = append(errs, removeUpper(u))
	}
	return errors.Join(errs...)
}

// removeUpper removes a tree, and what lies beside an image.
func removeUpper(path string) error {
	dir := filepath.Dir(path)
	files, err := fs.Glob(os.DirFS(dir), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	errs := []error{sys.RemoveTree(path)}
	for _, f := range files {
		errs = append(errs, os.Remove(filepath.Join(dir, f)))
	}
	return errors.Join(errs...)
}
