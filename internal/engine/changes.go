package engine

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

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
	return k.listChanges()
}

// listChanges is docker's list: a directory of the image is in it if what it is has changed, or something in it.
// That its time has is no change.
func (k *look) listChanges() ([]Change, error) {
	var out []Change
	same := map[string]bool{} // directories as the image has them
	holds := map[string]bool{"/": true}
	for f, err := range k.changes() {
		if err != nil {
			return nil, err
		}
		if f.Path == "." {
			continue
		}
		c := Change{Path: "/" + f.Path}
		below, err := k.image.Lstat(f.Path)
		switch {
		case err != nil && !errdefs.IsNotFound(err) && !isNotExist(err):
			return nil, err
		case f.Whiteout && err != nil:
			continue // of what the container made itself
		case f.Whiteout:
			c.Kind = ChangeDeleted
		case err != nil:
			c.Kind = ChangeAdded
		default:
			same[c.Path] = f.Mode&unix.S_IFMT == unix.S_IFDIR && !f.Opaque && f.Mode == below.Mode && f.UID == below.UID && f.GID == below.GID
		}
		out = append(out, c)
		for dir := path.Dir(c.Path); !same[c.Path] && !holds[dir]; dir = path.Dir(dir) {
			holds[dir] = true
		}
	}
	return slices.DeleteFunc(out, func(c Change) bool { return same[c.Path] && !holds[c.Path] }), nil
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
	l.tell("export", nil)
	return nil
}
