package tree

import (
	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// Stack is the merged view of overlay directories, top first.
func Stack(dirs []string) (FS, error) { return nil, errdefs.ErrNotImplemented }

// Dir is the view of one plain directory.
func Dir(root string) (FS, error) { return nil, errdefs.ErrNotImplemented }

// Resolve follows all symbolic links of path inside the root. What does not exist is kept as it is.
func Resolve(fs FS, path string) (string, error) { return "", errdefs.ErrNotImplemented }

// ResolveParent follows all but the last component.
func ResolveParent(fs FS, path string) (string, error) { return "", errdefs.ErrNotImplemented }

// Walk calls fn for root and everything below it, parents first, names in byte order.
func Walk(fs FS, root string, fn func(*oci.Entry) error) error { return errdefs.ErrNotImplemented }
