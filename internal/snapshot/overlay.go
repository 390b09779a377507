package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// maxLower is the kernel's bound on the directories of an overlay (OVL_MAX_STACK).
const maxLower = 500

// overlay describes mounts of the kernel's overlay file system.
type overlay struct{}

// OverlayMount describes an overlay of directories, top first; without upper
// it is read-only. The options are one flavour everywhere, and what the executor
// mounts: attributes of unprivileged users; no index, which would bind the upper
// directory to its lower ones; no syncing of the upper's file system when it is
// unmounted. With userxattr the kernel follows no redirects and makes neither them nor
// metadata copies, so that the upper directory is a difference, and refuses
// redirect_dir and metacopy as parameters.
func OverlayMount(lower []string, upper, work string, hold []*os.File) oci.Mount {
	m := oci.Mount{Type: "overlay", Target: "/", Lower: lower, Upper: upper, Work: work, Hold: hold}
	m.Options = []string{"userxattr", "index=off"}
	if upper == "" {
		m.Options = append(m.Options, "ro")
	} else {
		m.Options = append(m.Options, "volatile")
	}
	return m
}

func bind(dir string, access string, hold []*os.File) oci.Mount {
	return oci.Mount{Type: "bind", Source: dir, Target: "/", Options: []string{"bind", access}, Hold: hold}
}

// Name is "overlay".
func (overlay) Name() string { return "overlay" }

// Continues says that an upper directory can be used again.
func (overlay) Continues() {}

// Prepare describes an overlay whose upper directory is the draft's tree.
func (overlay) Prepare(_ context.Context, stack []Tree, d Draft) (*Active, error) {
	lower, hold, err := lowers(stack)
	if err != nil {
		return nil, fmt.Errorf("prepare overlay: %w", err)
	}
	a := &Active{upper: d.FS()}
	if len(lower) == 0 {
		a.Root = bind(d.FS(), "rw", hold)
		return a, nil
	}
	if err := adoptRoot(d.FS(), lower[0]); err != nil {
		return nil, fmt.Errorf("prepare overlay: %w", err)
	}
	a.Root = OverlayMount(lower, d.FS(), d.Work(), hold)
	return a, nil
}

// View describes a read-only overlay.
func (overlay) View(_ context.Context, stack []Tree) (*Active, error) {
	lower, hold, err := lowers(stack)
	if err != nil {
		return nil, fmt.Errorf("view overlay: %w", err)
	}
	return &Active{Root: view(lower, hold)}, nil
}

func view(lower []string, hold []*os.File) oci.Mount {
	switch len(lower) {
	case 0: // FROM scratch
		return oci.Mount{Type: "tmpfs", Source: "tmpfs", Target: "/", Options: []string{"ro", "size=4k", "mode=0755"}, Hold: hold}
	case 1: // the kernel wants two, or an upper
		return bind(lower[0], "ro", hold)
	}
	return OverlayMount(lower, "", "", hold)
}

// Changes has nothing to do: the upper directory is the difference.
func (overlay) Changes(context.Context, *Active) error { return nil }

func lowers(stack []Tree) ([]string, []*os.File, error) {
	lower, hold, err := directories(stack)
	if err == nil && len(lower) > maxLower {
		err = fmt.Errorf("%d layers, the kernel merges %d: %w", len(lower), maxLower, errdefs.ErrFailedPrecondition)
	}
	return lower, hold, err
}

// adoptRoot gives a new upper directory the owner and mode of the root below
// it, which it will hide.
func adoptRoot(upper, lower string) error {
	var have, want unix.Stat_t
	if err := unix.Stat(upper, &have); err != nil {
		return &os.PathError{Op: "stat", Path: upper, Err: err}
	}
	if err := unix.Stat(lower, &want); err != nil {
		return &os.PathError{Op: "stat", Path: lower, Err: err}
	}
	if have.Uid != want.Uid || have.Gid != want.Gid {
		if err := unix.Chown(upper, int(want.Uid), int(want.Gid)); err != nil && !errors.Is(err, unix.EPERM) {
			return &os.PathError{Op: "chown", Path: upper, Err: err}
		}
	}
	if mode := want.Mode & 0o7777; have.Mode&0o7777 != mode {
		if err := unix.Chmod(upper, mode); err != nil {
			return &os.PathError{Op: "chmod", Path: upper, Err: err}
		}
	}
	return nil
}
