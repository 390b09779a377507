package store

import (
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// ballastFile is room that is given up when the disk is so full that nothing can be
// removed: xfs wants blocks in reserve for each new name, whether or not it needs them,
// and removing takes a lock file and a flag.
const ballastFile = "lock/ballast"

const ballastBytes = 1 << 20

// takeBallast makes the file where it is needed and not there. That there is no room for it
// is no error.
func (s *Store) takeBallast() {
	if fs, err := sys.FSName(s.root); err != nil || fs != "xfs" || s.readOnly {
		return
	}
	f, err := os.OpenFile(s.path(ballastFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return
	}
	if unix.Fallocate(int(f.Fd()), 0, 0, ballastBytes) != nil {
		_ = os.Remove(f.Name())
	}
	_ = f.Close()
}

// dropBallast removes the file, and reports whether it was there.
func (s *Store) dropBallast() bool { return os.Remove(s.path(ballastFile)) == nil }
