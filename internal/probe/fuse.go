package probe

import (
	"errors"
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Fuse tries whether a program may serve a file system here: /dev/fuse, and a mount
// that is attached nowhere. The error says what to do.
func Fuse() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return errors.New("there is no /dev/fuse: docker run --device /dev/fuse")
	case err != nil:
		return fmt.Errorf("open /dev/fuse: %w: docker run --device /dev/fuse", err)
	}
	defer unix.Close(fd)
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fs)
	for _, kv := range [][2]string{{"fd", fmt.Sprint(fd)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return fmt.Errorf("mount fuse: %s: %w", kv[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mount fuse: %w", err)
	}
	return nil
}

// FuseOverlay finds the program fuse-overlayfs, and whether it could mount. The error
// is a sentence.
func FuseOverlay() (string, error) {
	path, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		return "", errors.New("there is no fuse-overlayfs in PATH: install the package of that name")
	}
	return path, Fuse()
}
