package backing

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
)

// The numbers of loop devices (Documentation/admin-guide/devices.txt).
const (
	loopMajor         = 7
	loopControlMajor  = 10
	loopControlMinor  = 237
	blockBytes        = 4096
	ioctlResizeFS     = 0x40086610 // EXT4_IOC_RESIZE_FS
	configureAttempts = 64
)

// attach returns the loop device of the image, and makes one if there is none. While it
// is open, or mounted, it stays. The caller holds the lock.
func (b *Backing) attach(image *os.File) (*os.File, error) {
	device, err := findLoop(image)
	if device != nil || err != nil {
		return device, err
	}
	control, err := openDevice(b.dir, "/dev/loop-control", unix.S_IFCHR, unix.Mkdev(loopControlMajor, loopControlMinor))
	if err != nil {
		return nil, forbidden(err)
	}
	defer control.Close()
	for range configureAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, forbidden(fmt.Errorf("LOOP_CTL_GET_FREE: %w", err))
		}
		device, err := openDevice(b.dir, fmt.Sprintf("/dev/loop%d", n), unix.S_IFBLK, unix.Mkdev(loopMajor, uint32(n)))
		if err != nil {
			return nil, forbidden(err)
		}
		if err := failpoint.Hit("backing.attach.configure"); err != nil {
			return nil, errors.Join(err, device.Close())
		}
		err = configure(device, image)
		if err == nil {
			return device, failpoint.Hit("backing.attach.configured")
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster to take it
			return nil, fmt.Errorf("LOOP_CONFIGURE: %w", err)
		}
	}
	return nil, fmt.Errorf("no loop device is free: %w", errdefs.ErrUnavailable)
}

// configure attaches the image in one step, so that who dies before has done nothing
// and who dies after leaves a device that detaches itself.
func configure(device, image *os.File) error {
	c := unix.LoopConfig{Fd: uint32(image.Fd()), Size: blockBytes}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	copy(c.Info.File_name[:unix.LO_NAME_SIZE-1], image.Name())
	return unix.IoctlLoopConfigure(int(device.Fd()), &c)
}

// forbidden says what the outer container has to allow.
func forbidden(err error) error {
	return fmt.Errorf("loop devices cannot be used here: %w; start the outer container with --privileged, or with CAP_SYS_ADMIN, -v /dev:/dev and "+
		"--device-cgroup-rule 'b 7:* rmw' --device-cgroup-rule 'c 10:237 rmw', or give the store a volume instead: %w", err, errdefs.ErrFailedPrecondition)
}

// findLoop returns the loop device that the image is attached to, opened so that it
// stays; nil if there is none.
func findLoop(image *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return nil, err
	}
	// In use, of whoever on this machine: others' are looked at and left alone.
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		name := strings.Split(file, "/")[3]
		n, err := strconv.ParseUint(strings.TrimPrefix(name, "loop"), 10, 20)
		if err != nil {
			continue
		}
		device, err := openDevice(filepath.Dir(image.Name()), "/dev/"+name, unix.S_IFBLK, unix.Mkdev(loopMajor, uint32(n)))
		if errors.Is(err, unix.ENXIO) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, forbidden(err)
		}
		// Open, it cannot be detached any more, so it is what it says.
		info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino && info.Offset == 0 && info.Sizelimit == 0 {
			return device, nil
		}
		device.Close()
		if err != nil && !errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("LOOP_GET_STATUS64 %s: %w", name, err)
		}
	}
	return nil, nil
}

// openDevice opens a device by its name, or by its number where the container's /dev
// has no node for it, by way of one in dir.
func openDevice(dir, path string, kind uint32, number uint64) (*os.File, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open(path, flags, 0)
	if err == nil {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == kind && st.Rdev == number {
			return os.NewFile(uintptr(fd), path), nil
		}
		unix.Close(fd)
		return nil, fmt.Errorf("%s is another device than its name says", path)
	}
	if !errors.Is(err, unix.ENOENT) {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	tmp, err := os.MkdirTemp(dir, tmpPrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	node := filepath.Join(tmp, filepath.Base(path))
	if err := unix.Mknod(node, kind|0o600, int(number)); err != nil {
		return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	if fd, err = unix.Open(node, flags, 0); err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// busyWait is how long a superblock that is being given up may take to go.
const busyWait = 30 * time.Second

// mountDevice returns a mount of the device's file system that is attached nowhere. If
// somebody has it mounted, it is of the same superblock.
func mountDevice(device *os.File) (*os.File, error) {
	for deadline := time.Now().Add(busyWait); ; time.Sleep(5 * time.Millisecond) {
		mount, err := tryMount(device)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return mount, err
		}
	}
}

func tryMount(device *os.File) (*os.File, error) {
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, forbidden(fmt.Errorf("fsopen ext4: %w", err))
	}
	defer unix.Close(fs)
	// By its descriptor: /dev may have no node, or another one.
	err = unix.FsconfigSetString(fs, "source", fmt.Sprintf("/proc/self/fd/%d", device.Fd()))
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w%s", device.Name(), err, kernelSays(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount %s: fsmount: %w", device.Name(), err)
	}
	return os.NewFile(uintptr(fd), device.Name()), nil
}

// kernelSays reads the messages of a file system context.
func kernelSays(fs int) string {
	var b [512]byte
	var said []string
	for range 8 {
		n, err := unix.Read(fs, b[:])
		if err != nil || n < 2 {
			break
		}
		said = append(said, strings.TrimSpace(string(b[2:n])))
	}
	if len(said) == 0 {
		return ""
	}
	return " (" + strings.Join(said, "; ") + ")"
}

func resize(fd int, blocks uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return fmt.Errorf("EXT4_IOC_RESIZE_FS: %w", errno)
	}
	return nil
}
