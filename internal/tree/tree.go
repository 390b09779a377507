// Package tree reads directories through a view that no symbolic link leaves:
// one plain directory, or the merge of a stack of overlay directories, without
// mounting anything.
//
// Paths are relative to the view's root, with or without a leading slash.
// Lstat, ReadDir, Readlink and Open follow no symbolic link at all, in no component;
// Resolve follows them in user space, against the merged view, so that an
// absolute target or ".." never names anything outside.
package tree

import (
	"io"

	"den/internal/oci"
)

// FS is a read-only view of a file tree. It may be used by several goroutines.
type FS interface {
	// Lstat describes what path names.
	Lstat(path string) (*oci.Entry, error)
	// ReadDir lists a directory in byte order, without "." and "..".
	ReadDir(path string) ([]*oci.Entry, error)
	// Readlink returns the target of a symbolic link.
	Readlink(path string) (string, error)
	// Open opens a regular file. On disk it is an *os.File.
	Open(path string) (io.ReadCloser, error)
	// Close frees what the view holds open.
	Close() error
}
