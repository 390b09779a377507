package engine

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"

	"den/internal/layer"
	"den/internal/snapshot"
	"den/internal/tree"
)

// A ChangeKind says what happened to a path.
type ChangeKind int

// The kinds of changes, numbered as docker does.
const (
	ChangeModified ChangeKind = iota
	ChangeAdded
	ChangeDeleted
)

// A Change is one path that differs from the image.
type Change struct {
	Path string
	Kind ChangeKind
}

// Changes lists what a container changed.
func (e *Engine) Changes(ctx context.Context, nameOrID string) (_ []Change, err error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	k, err := l.look(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	if len(k.own) == 0 {
		return nil, nil
	}
	var out []Change
	for f, err := range k.changes() {
		if err != nil {
			return nil, err
		}
		if f.Path == "." {
			continue
		}
		below, err := exists(k.image, f.Path)
		if err != nil {
			return nil, err
		}
		c := Change{Path: "/" + f.Path}
		switch {
		case f.Whiteout && !below:
			continue // of what the container made itself
		case f.Whiteout:
			c.Kind = ChangeDeleted
		case !below:
			c.Kind = ChangeAdded
		}
		out = append(out, c)
	}
	return out, nil
}

func exists(fs tree.FS, path string) (bool, error) {
	_, err := fs.Lstat(path)
	if errdefs.IsNotFound(err) || isNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// Export writes a container's file system, without volumes, to w as a tar.
func (e *Engine) Export(ctx context.Context, nameOrID string, w io.Writer) (err error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	k, err := l.look(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	if _, err := layer.WriteTar(ctx, w, snapshot.Files(k.c.view, ".")); err != nil {
		return err
	}
	r := l.snapshot()
	e.containerEvent(&r, "export", nil)
	return nil
}
