package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Flock places, converts or (unix.LOCK_UN) removes the flock(2) lock of f's
// open file description. Without unix.LOCK_NB it waits as long as it takes.
func Flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return wrapFlock(f, err)
		}
	}
}

// TryFlock is Flock that does not wait; it reports whether it got the lock.
func TryFlock(f *os.File, how int) (bool, error) {
	err := Flock(f, how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func wrapFlock(f *os.File, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("flock %s: %w", f.Name(), err)
}

// SameInode reports whether path still names the file that f is: the check
// that has to follow every lock on a file that others may rename or remove.
func SameInode(f *os.File, path string) (bool, error) {
	var open, named unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &open); err != nil {
		return false, fmt.Errorf("fstat %s: %w", path, err)
	}
	if err := unix.Lstat(path, &named); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return false, nil
		}
		return false, fmt.Errorf("lstat %s: %w", path, err)
	}
	return open.Ino == named.Ino && open.Dev == named.Dev, nil
}
