package snapshot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/sys"
)

// copying makes a full copy of the merged tree for each sandbox. It needs
// nothing from the kernel and shares blocks where the file system can.
type copying struct {
	scratch func(context.Context) (Draft, error)
}

// Name is "copy".
func (copying) Name() string { return "copy" }

// Prepare copies the stack into the draft's work directory.
func (copying) Prepare(ctx context.Context, stack []Tree, d Draft) (*Active, error) {
	dirs, _, err := directories(stack)
	if err != nil {
		return nil, fmt.Errorf("prepare copy: %w", err)
	}
	root := filepath.Join(d.Work(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, fmt.Errorf("prepare copy: %w", err)
	}
	if err := materialise(ctx, root, dirs); err != nil {
		return nil, fmt.Errorf("prepare copy: %w", err)
	}
	b, err := newBaseline(ctx, root, filepath.Join(d.Work(), "instant"))
	if err != nil {
		return nil, fmt.Errorf("prepare copy: %w", err)
	}
	return &Active{Root: bind(root, "rw", nil), upper: d.FS(), baseline: b, lower: dirs}, nil
}

// View shows a single tree as it is and copies a stack of several.
func (c copying) View(ctx context.Context, stack []Tree) (*Active, error) {
	dirs, hold, err := directories(stack)
	if err != nil {
		return nil, fmt.Errorf("view copy: %w", err)
	}
	if len(dirs) < 2 {
		return &Active{Root: view(dirs, hold)}, nil
	}
	d, err := c.draft(ctx)
	if err != nil {
		return nil, fmt.Errorf("view copy: %w", err)
	}
	if err := materialise(ctx, d.FS(), dirs); err != nil {
		return nil, errors.Join(fmt.Errorf("view copy: %w", err), d.Close())
	}
	return &Active{Root: bind(d.FS(), "ro", nil), close: d.Close}, nil
}

func (c copying) draft(ctx context.Context) (Draft, error) {
	if c.scratch != nil {
		return c.scratch(ctx)
	}
	dir, err := os.MkdirTemp("", "den-view-")
	if err != nil {
		return nil, err
	}
	return tempDraft(dir), nil
}

// Changes compares the copy with what it was and builds the difference in the
// draft.
func (copying) Changes(ctx context.Context, a *Active) error {
	diff, err := a.baseline.compare(ctx, a.Root.Source, a.lower)
	if err == nil {
		err = layer.Create(ctx, a.upper, diff.files(a.Root.Source), layer.UnpackOptions{InUserns: !sys.MakesDevices()})
	}
	if err != nil {
		return fmt.Errorf("collect changes: %w", err)
	}
	return nil
}

// materialise makes the merged tree of dirs, top first, in root. With nothing
// below it, removals are no longer needed.
func materialise(ctx context.Context, root string, dirs []string) error {
	return layer.Create(ctx, root, solid(layer.WalkStack(dirs)), layer.UnpackOptions{InUserns: !sys.MakesDevices()})
}

func solid(files iter.Seq2[layer.File, error]) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		for f, err := range files {
			if f.Whiteout {
				continue
			}
			f.Opaque = false
			if !yield(f, err) {
				return
			}
		}
	}
}

// tempDraft is a directory for temporary files.
type tempDraft string

// FS is the directory itself.
func (d tempDraft) FS() string { return string(d) }

// Work is unused.
func (d tempDraft) Work() string { return "" }

// Close removes the directory.
func (d tempDraft) Close() error {
	parent, err := unix.Open(filepath.Dir(string(d)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(string(d)), Err: err}
	}
	defer func() { _ = unix.Close(parent) }()
	return sys.RemoveAllAt(parent, filepath.Base(string(d)))
}
