// Package snapshot describes the root file system of a sandbox: a stack of
// immutable trees, and for a writable one a draft that takes the changes.
//
// Drivers only describe (overlay) or materialise (copy); mounting is the
// executor's. Two rules make them interchangeable: no driver ever writes to a
// tree of the stack, and after Changes the draft holds exactly the changes, in
// overlay form, whichever driver made them. snapshottest checks both.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"den/internal/layer"
	"den/internal/lower"
	"den/internal/oci"
)

// A Tree is an immutable layer on disk.
type Tree interface {
	// Dirs are the paths of its trees, top first: directories in overlay form, or images.
	Dirs() []string
	// Hold are the leases that keep it.
	Hold() []*os.File
	// DiffID names the layer.
	DiffID() oci.Digest
	// Close gives the leases back.
	Close() error
}

// A Draft is private room in which a tree comes to be.
type Draft interface {
	// FS is the tree in the making: an empty directory, or the path of an image
	// that does not exist yet.
	FS() string
	// Work is an empty directory on the same file system.
	Work() string
	// Close removes both unless the draft was published.
	Close() error
}

// A Driver makes root file systems out of stacks of trees, bottom first. The
// trees and the draft stay the caller's; the trees' leases also lie in the
// mount's Hold, for whoever keeps it alive.
type Driver interface {
	// Name is what `den doctor` calls it.
	Name() string
	// Prepare makes a writable root whose changes go to d.
	Prepare(ctx context.Context, stack []Tree, d Draft) (*Active, error)
	// View makes a read-only root.
	View(ctx context.Context, stack []Tree) (*Active, error)
	// Changes turns what the sandbox left into d.FS(), in the form of the trees. It is
	// called after the sandbox has ended and before the draft is published.
	Changes(ctx context.Context, a *Active) error
}

// A Continuer is a Driver whose writable roots need nothing of the process that prepared
// them, and which prepares one on a draft that an earlier sandbox has written.
type Continuer interface {
	Driver
	// Continues does nothing.
	Continues()
}

// Active is a root file system in use.
type Active struct {
	// Root is to be mounted at "/".
	Root oci.Mount

	upper    string
	baseline *baseline    // the copy driver's
	lower    []string     // fuse-overlayfs', and the copy driver's
	close    func() error // removes what the driver made, nil for nothing
}

// Upper is the tree that holds the changes after Changes; empty for a view.
func (a *Active) Upper() string { return a.upper }

// Close removes what the driver made beside the draft. The sandbox has ended by then.
func (a *Active) Close() error {
	if a.close == nil {
		return nil
	}
	fn := a.close
	a.close = nil
	return fn()
}

// Commit computes the layer that the draft of a holds after Changes.
func Commit(ctx context.Context, a *Active) (layer.Applied, error) {
	if a.upper == "" {
		return layer.Applied{}, errors.New("commit snapshot: it is read-only")
	}
	applied, err := layer.WriteTar(ctx, io.Discard, layer.WalkUpper(a.upper))
	if err != nil {
		return applied, fmt.Errorf("commit snapshot: %w", err)
	}
	return applied, nil
}

// directories are the stack's directories, top first, as an overlay wants
// them, and the leases on them. The same directory is taken once, where it is
// topmost: what it holds further down is hidden by it, and the kernel refuses
// it twice. The kernel ignores the mark of an opaque root, so the list ends there.
func directories(stack []Tree) (dirs []string, hold []*os.File, err error) {
	seen := map[string]bool{}
	hidden := false
	for i := len(stack) - 1; i >= 0; i-- {
		hold = append(hold, stack[i].Hold()...)
		for _, d := range stack[i].Dirs() {
			if hidden || seen[d] {
				continue
			}
			seen[d] = true
			dirs = append(dirs, d)
			if hidden, err = isOpaque(d); err != nil {
				return nil, nil, err
			}
		}
	}
	return dirs, hold, nil
}

func isOpaque(path string) (bool, error) {
	d, err := lower.Open(path)
	if err != nil {
		return false, err
	}
	defer d.Close()
	opaque, err := d.Opaque()
	if err != nil {
		return false, &os.PathError{Op: "getxattr", Path: path, Err: err}
	}
	return opaque, nil
}
