package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"den/internal/sys"
)

// Look says what a store in root is or would be, without making one.
type Look struct {
	// Exists says that there is one already.
	Exists bool
	// Shared says that other containers on this kernel can use it at the same time.
	Shared bool
}

// LookAt looks at root, which may not be there yet. The error, of class
// errdefs.ErrFailedPrecondition, says why there can be no store.
func LookAt(root string) (Look, error) {
	var l Look
	root, err := filepath.Abs(root)
	if err != nil {
		return l, fmt.Errorf("store: %w", err)
	}
	_, err = os.Lstat(filepath.Join(root, FormatFile))
	l.Exists = err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return l, fmt.Errorf("store %s: %w; set DEN_STORE to a directory, best on a volume: %w", root, err, errdefs.ErrFailedPrecondition)
	}
	dir := nearest(root)
	fs, err := sys.FSName(dir)
	if err != nil {
		return l, fmt.Errorf("store %s: %w", root, err)
	}
	p := placeOf(fs)
	if fs == "fuse" && isContainerRoot(dir) {
		p = placePrivate
	}
	if p == placeRefused {
		return l, fmt.Errorf("store %s: its file system is %s, where locks between machines or kernels do not hold; "+
			"set DEN_STORE to a directory on a local disk or a tmpfs: %w", root, fs, errdefs.ErrFailedPrecondition)
	}
	l.Shared = p == placeShared
	return l, nil
}
