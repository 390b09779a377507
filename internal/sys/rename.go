package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// RenameNoReplace renames from to to and fails with EEXIST when to exists
// (renameat2(2), RENAME_NOREPLACE).
func RenameNoReplace(from, to string) error {
	return renameat2(from, to, unix.RENAME_NOREPLACE)
}

// RenameExchange swaps what from and to name, atomically.
func RenameExchange(from, to string) error {
	return renameat2(from, to, unix.RENAME_EXCHANGE)
}

func renameat2(from, to string, flags uint) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags); err != nil {
		return &os.LinkError{Op: "renameat2", Old: from, New: to, Err: err}
	}
	return nil
}
