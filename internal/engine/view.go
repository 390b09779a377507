package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"

	"den/internal/image"
	"den/internal/layer"
	"den/internal/sandbox"
	"den/internal/tree"
)

// openView opens the container's files for reading: the image's, with what the container
// wrote above them.
func (c *container) openView(ctx context.Context) (err error) {
	if c.trees, err = c.engine.Images.Trees(ctx, c.image.Layers, image.TreeOptions{}); err != nil {
		return err
	}
	c.view, err = tree.Stack(append(c.record.own(c.dir.Path()), c.dirs()...))
	if err != nil {
		return fmt.Errorf("read files of container %s: %w", c.record.ID, err)
	}
	return nil
}

// A look is a container's files, open for reading.
type look struct {
	c *container
	// own are the trees of what the container wrote, top first.
	own []string
	// image is the view without them.
	image tree.FS
	temp  string
	// stubs are mount points that may be there only for as long as the container runs.
	stubs map[string]bool
}

// look opens the container's files. A sandbox that keeps to itself what it wrote is asked for it.
func (l *life) look(ctx context.Context) (_ *look, err error) {
	l.mu.Lock()
	k := &look{c: &container{
		engine: l.engine, request: &l.request.RunRequest, more: l.request, image: l.image, config: l.config, record: l.record,
	}}
	r := l.run
	l.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if k.c.dir, err = l.engine.Store.OpenContainer(l.id); err != nil {
		return nil, missing(l.id, err)
	}
	if r != nil {
		k.stubs = map[string]bool{}
		for _, t := range r.targets {
			k.stubs[t] = true
		}
		if ch, ok := r.sb.(sandbox.Changer); ok {
			if err := k.capture(ctx, ch); err != nil {
				return nil, err
			}
		}
	}
	if k.c.trees, err = l.engine.Images.Trees(ctx, l.image.Layers, image.TreeOptions{}); err != nil {
		return nil, err
	}
	if k.own = k.c.record.own(k.c.dir.Path()); k.temp != "" {
		k.own = append([]string{k.temp}, k.own...)
	}
	if k.image, err = tree.Stack(k.c.dirs()); err != nil {
		return nil, err
	}
	k.c.view, err = tree.Stack(append(k.own, k.c.dirs()...))
	return k, err
}

// lookDir begins the names of directories, in a container's, with what a running sandbox had written.
const lookDir = "look-"

// capture makes a tree of what a running sandbox has written so far.
func (k *look) capture(ctx context.Context, ch sandbox.Changer) error {
	draft, err := os.MkdirTemp(k.c.dir.Path(), lookDir)
	if err != nil {
		return err
	}
	o := k.c.engine.treeOptions()
	k.temp = filepath.Join(draft, upperName(o.Image, 0))
	if !o.Image {
		if err := os.Mkdir(k.temp, 0o755); err != nil {
			return err
		}
	}
	read, write := io.Pipe()
	go func() { write.CloseWithError(ch.ExportChanges(ctx, write)) }()
	_, err = layer.Unpack(ctx, read, k.temp, o)
	read.CloseWithError(err)
	return err
}

// changes are what the container wrote, as one layer, without the mount points that the
// sandbox has made for it.
func (k *look) changes() iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		for f, err := range layer.WalkStack(k.own) {
			if err == nil && k.stubs[f.Path] {
				var below bool
				if below, err = exists(k.image, f.Path); err == nil && !below {
					continue
				}
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

func (k *look) close() error {
	var errs []error
	if k.image != nil {
		errs = append(errs, k.image.Close())
	}
	if k.temp != "" {
		errs = append(errs, removeUpper(k.temp), os.Remove(filepath.Dir(k.temp)))
	}
	return errors.Join(append(errs, k.c.finish(false))...)
}

// treeBytes sums the sizes of the files of trees that lie on each other.
func treeBytes(ctx context.Context, own []string) (sum int64, err error) {
	for f, err := range layer.WalkStack(own) {
		if err != nil {
			return 0, err
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if !f.Hardlink && !f.Whiteout {
			sum += f.Size
		}
	}
	return sum, nil
}
