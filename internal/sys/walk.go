package sys

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WalkChanging calls visit for root and everything beneath it, in a tree that others change
// meanwhile. It leaves out what it may not read, what is gone when it comes there, and what is
// beneath a directory that has become something else.
func WalkChanging(root string, visit func(fs.FileInfo)) error {
	return filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		switch {
		case err == nil:
			visit(info)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, fs.ErrPermission):
		default:
			return err
		}
		return nil
	})
}
