package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// A Disk is how full a file system is.
type Disk struct {
	UsedBytes int64
	// FreeBytes is what this process may still use.
	FreeBytes int64
}

// DiskOf says how full the file system is that holds path.
func DiskOf(path string) (Disk, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return Disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
		}
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	return Disk{UsedBytes: int64(st.Blocks-st.Bfree) * unit, FreeBytes: int64(st.Bavail) * unit}, nil
}
