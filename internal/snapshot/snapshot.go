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
	"os"

	"den/internal/layer"
	"den/internal/oci"
)

// A Tree is an immutable layer on disk.
type Tree interface {
	// Dirs are its directories in overlay form, top first.
	Dirs() []string
	// Hold are the leases that keep it.
	Hold() []*os.File
	DiffID() oci.Digest
	Close() error
}

// A Draft is a private directory that becomes a tree.
type Draft interface {
	// FS is the tree in the making.
	FS() string
	// Work is an empty directory on the same file system.
	Work() string
	Close() error
}

// A Driver makes root file systems out of stacks of trees, bottom first.
type Driver interface {
	Name() string
	// Prepare makes a writable root whose changes go to d.
	Prepare(ctx context.Context, stack []Tree, d Draft) (*Active, error)
	// View makes a read-only root.
	View(ctx context.Context, stack []Tree) (*Active, error)
	// Changes turns what the sandbox left into d.FS(), in overlay form. It is
	// called after the sandbox has ended and before the draft is published.
	Changes(ctx context.Context, a *Active) error
}

// Facts are what the choice of a driver depends on.
type Facts struct {
	// OverlayOK says that an overlay with its upper directory in the store
	// could be mounted; OverlayErr why not.
	OverlayOK  bool
	OverlayErr string
	// OnOverlay says that the store lies on an overlay file system.
	OnOverlay bool
	// Reflink says that the store's file system shares blocks between files.
	Reflink bool
	// InUserns says that device nodes cannot be made.
	InUserns bool
	// Scratch makes a draft for a view of the copy driver; nil uses the
	// directory for temporary files.
	Scratch func(context.Context) (Draft, error)
}

// Commit computes the layer that the draft of a holds after Changes.
func Commit(ctx context.Context, a *Active) (layer.Applied, error) {
	return layer.WriteTar(ctx, discard{}, layer.WalkUpper(a.Upper()))
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
