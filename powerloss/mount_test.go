package powerloss

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// patience bounds the wait for what the kernel finishes by itself.
const patience = time.Minute

// A fileSystem is one that den promises something on.
type fileSystem struct {
	name  string
	bytes int64
	mkfs  []string
	// options make it commit its metadata often, while data still waits.
	options string
}

var fileSystems = []fileSystem{
	{"ext4", 256 << 20, []string{"mkfs.ext4", "-q", "-F"}, "commit=1,noinit_itable"},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f"}, ""},
	{"btrfs", 256 << 20, []string{"mkfs.btrfs", "-q", "-f"}, "commit=1"},
}

// empty makes a new file system.
func (k fileSystem) empty(t *testing.T) image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, k.bytes))
	if out, err := exec.Command(k.mkfs[0], append(k.mkfs[1:], path)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", k.mkfs[0], err, out)
	}
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	img := make(image, k.bytes/blockSize)
	for off := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		must(t, err)
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		must(t, err)
		data := make([]byte, end-begin)
		_, err = f.ReadAt(data, begin)
		must(t, err)
		img.writeAt(data, begin)
		off = end
	}
	must(t, os.Remove(path))
	return img
}

// need skips the test where the machine lacks something, and names it.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to mount file systems")
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Skip("needs ", path, ": ", err)
		}
		f.Close()
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs ", p)
		}
	}
}

// A farm is the FUSE file system that holds the disks of one test.
type farm struct {
	dir  string
	root *fs.Inode
	n    int
}

func newFarm(t *testing.T) *farm {
	t.Helper()
	f := &farm{dir: filepath.Join(t.TempDir(), "disks"), root: &fs.Inode{}}
	must(t, os.Mkdir(f.dir, 0o700))
	zero := time.Duration(0)
	server, err := fs.Mount(f.dir, f.root, &fs.Options{
		AttrTimeout: &zero, EntryTimeout: &zero, NegativeTimeout: &zero,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, DisableSplice: true, MaxWrite: 1 << 20, FsName: "powerloss"},
	})
	if err != nil {
		t.Skip("needs to mount FUSE: ", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// attach puts a loop device on d. It goes with its last user.
func (f *farm) attach(t *testing.T, d *disk) *os.File {
	t.Helper()
	f.n++
	name := fmt.Sprint(f.n)
	f.root.AddChild(name, f.root.NewPersistentInode(context.Background(), d, fs.StableAttr{Mode: unix.S_IFREG}), true)
	file, err := os.OpenFile(filepath.Join(f.dir, name), os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		name := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Skip("needs ", name, ": ", err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // else another process was faster
			t.Skip("needs ", loop.Name(), " on a FUSE file: ", err)
		}
	}
}

// mount mounts d, as k, until unmount; without it the file system refused what it found.
func (f *farm) mount(t *testing.T, k fileSystem, d *disk) (dir string, unmount func(t *testing.T)) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mnt")
	must(t, os.MkdirAll(dir, 0o700))
	loop := f.attach(t, d)
	err := unix.Mount(loop.Name(), dir, k.name, unix.MS_NOATIME, k.options)
	must(t, loop.Close())
	if errors.Is(err, unix.ENODEV) {
		t.Skip("needs /proc/filesystems to have ", k.name)
	}
	if err != nil {
		t.Logf("%s does not mount what the power cut left: %v", k.name, err)
		<-d.closed
		f.root.RmChild(fmt.Sprint(f.n))
		must(t, os.Remove(dir))
		return "", nil
	}
	return dir, func(t *testing.T) {
		t.Helper()
		// A detached process may still be syncing it.
		deadline := time.Now().Add(patience)
		for err := unix.Unmount(dir, 0); err != nil; err = unix.Unmount(dir, 0) {
			if time.Now().After(deadline) {
				t.Fatalf("unmount: %v", err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		select {
		case <-d.closed:
		case <-time.After(patience):
			t.Fatal("the loop device does not let go")
		}
		f.root.RmChild(fmt.Sprint(f.n))
		must(t, os.Remove(dir))
	}
}
