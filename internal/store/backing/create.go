package backing

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/store/ext4"
	"den/internal/sys"
)

// tmpPrefix begins the names of images that are being made.
const tmpPrefix = "den-backing-"

// Create gives dir an image of sizeBytes, rounded up to what a file system can have; it
// takes next to no room. An image that is there already grows; it does not shrink.
// Any number of processes may do so at once.
func Create(dir string, sizeBytes int64) (_ *Backing, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create backing %s: %w", dir, err)
		}
	}()
	if sizeBytes, err = size(sizeBytes); err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := checkPlace(dir); err != nil {
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := sys.Flock(lock, unix.LOCK_EX); err != nil {
		return nil, err
	}
	b, err := Find(dir)
	if err != nil {
		return nil, err
	}
	if b != nil {
		return b, b.grow(sizeBytes, idleWait)
	}
	if err := checkEmpty(dir); err != nil {
		return nil, err
	}
	b = &Backing{dir}
	return b, b.create(sizeBytes)
}

// checkEmpty lets only what a Create that was killed left be in dir.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if slices.Contains([]string{mountDir, imageFile, "lost+found"}, name) || strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		return fmt.Errorf("the directory holds %q; choose an empty one: %w", name, errdefs.ErrFailedPrecondition)
	}
	// An older store's members would have been named above.
	if left, err := os.ReadDir(filepath.Join(dir, mountDir)); err == nil && len(left) > 0 {
		return fmt.Errorf("the directory %s in it is not empty; choose another: %w", mountDir, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// create makes image and directory, and then the marker, which says that they are whole.
func (b *Backing) create(sizeBytes int64) error {
	left, err := fs.Glob(os.DirFS(b.dir), tmpPrefix+"*")
	if err != nil {
		return err
	}
	for _, name := range append(left, filepath.Base(b.image())) {
		if err := os.Remove(filepath.Join(b.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Mkdir(b.Store(), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	err = writeWhole(b.image(), 0o600, func(f *os.File) error {
		if err := ext4.Format(f, sizeBytes); err != nil {
			return err
		}
		return b.mountOnce(f) // else who made it would learn from the first command that it is of no use
	})
	if err != nil {
		return err
	}
	data, err := json.Marshal(marker{markerVersion, "loop"})
	if err != nil {
		return err
	}
	return writeWhole(b.marker(), 0o644, func(f *os.File) error {
		_, err := f.Write(append(data, '\n'))
		return err
	})
}

// writeWhole gives path a file that is on disk before it has the name.
func writeWhole(path string, mode os.FileMode, write func(*os.File) error) error {
	tmp := filepath.Join(filepath.Dir(path), tmpPrefix+rand.Text())
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = failpoint.Hit("backing.create.rename")
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// idleWait is how long an image may stay in use after the command before, whose
// processes that sync and trim it end by themselves.
const idleWait = 5 * time.Second

// grow makes the image larger: by rewriting it while nobody has it mounted, else by the
// kernel, which wants CAP_SYS_RESOURCE for it.
func (b *Backing) grow(sizeBytes int64, idle time.Duration) error {
	lock, err := b.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	image, err := os.OpenFile(b.image(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	have, err := ext4.Bytes(image)
	if err != nil {
		return err
	}
	switch {
	case sizeBytes == have:
		return nil
	case sizeBytes < have:
		return fmt.Errorf("it has %d GiB and cannot shrink to %d; collect instead (den store gc), what is unused takes no room: %w",
			have>>30, sizeBytes>>30, errdefs.ErrFailedPrecondition)
	}
	for deadline := time.Now().Add(idle); ; time.Sleep(20 * time.Millisecond) {
		device, err := findLoop(image)
		if err != nil {
			return err
		}
		if device == nil {
			break
		}
		err = b.growMounted(image, device, sizeBytes)
		if err = errors.Join(err, device.Close()); !errors.Is(err, unix.EPERM) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it is in use, and growing what is in use needs CAP_SYS_RESOURCE: "+
				"end the dens that use it, or give the outer container that capability: %w", errdefs.ErrFailedPrecondition)
		}
	}
	err = ext4.Grow(image, sizeBytes)
	if !errors.Is(err, ext4.ErrUnclean) {
		return err
	}
	// Its last user was killed together with the machine: the kernel brings the
	// journal home.
	if err := b.mountOnce(image); err != nil {
		return err
	}
	return ext4.Grow(image, sizeBytes)
}

// growMounted lets the kernel do it.
func (b *Backing) growMounted(image, device *os.File, sizeBytes int64) error {
	mount, err := mountDevice(device)
	if err != nil {
		return err
	}
	defer mount.Close()
	if err := image.Truncate(sizeBytes); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("resize loop device: %w", err)
	}
	root, err := sys.OpenInRoot(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("open file system: %w", err)
	}
	defer unix.Close(root)
	return resize(root, uint64(sizeBytes/blockBytes))
}
