package backing

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// enteredEnv marks the process that Enter made, so that it never tries again.
const enteredEnv = "_DEN_BACKING=1"

// Enter replaces the calling process by the same program, with argv and env, in a mount
// namespace of its own in which the image is mounted. The process keeps its id, its streams
// and its place in the process tree. It returns at once where the image is mounted already,
// and else only on error: of class errdefs.ErrFailedPrecondition where loop devices and mounts are not allowed.
//
// Call it from the main goroutine, before other threads depend on the mount namespace.
func (b *Backing) Enter(argv, env []string) error {
	if b.Mounted() {
		return nil
	}
	err := b.enter(argv, env)
	return fmt.Errorf("backing %s: %w", b.dir, err)
}

func (b *Backing) enter(argv, env []string) error {
	if slices.Contains(env, enteredEnv) {
		return fmt.Errorf("the image is not mounted though den has mounted it: %w", errdefs.ErrUnavailable)
	}
	if err := checkPlace(b.dir); err != nil {
		return err
	}
	mount, err := b.mount()
	if err != nil {
		return err
	}
	defer mount.Close()
	// A thread that has left the others' mount namespace is of no more use to Go; exec
	// makes it the only one, and after an error it ends with its goroutine.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return forbidden(fmt.Errorf("unshare(CLONE_NEWNS): %w", err))
	}
	// What is mounted outside appears here, and nothing of this there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, b.Store(), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount on %s: %w", b.Store(), err)
	}
	env = append(slices.Clone(env), enteredEnv)
	path, err := os.Executable()
	if err != nil {
		return err
	}
	// Under its name, which is what the process is called by, else as what it is.
	err = syscall.Exec(path, argv, env)
	if err != nil {
		err = syscall.Exec("/proc/self/exe", argv, env)
	}
	return fmt.Errorf("execute den again: %w", err)
}

// mount returns a mount of the image that is attached nowhere.
func (b *Backing) mount() (*os.File, error) {
	lock, err := b.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	image, err := os.OpenFile(b.image(), os.O_RDWR, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("%w: its user must be able to write the image, and root with CAP_SYS_ADMIN: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	// The device has its own hold on the open file.
	defer image.Close()
	device, err := b.attach(image)
	if err != nil {
		return nil, err
	}
	// The mount holds the device from here on.
	defer device.Close()
	return mountDevice(device)
}

// mountOnce mounts and unmounts the image, for which the caller holds the lock.
func (b *Backing) mountOnce(image *os.File) error {
	device, err := b.attach(image)
	if err != nil {
		return err
	}
	defer device.Close()
	mount, err := mountDevice(device)
	if err != nil {
		return err
	}
	return mount.Close()
}
