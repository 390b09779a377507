package snapshot_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/probe"
	"den/internal/snapshot"
	"den/internal/snapshot/snapshottest"
)

func TestCopiesShareBlocksWhereTheFileSystemCan(t *testing.T) {
	for _, c := range []struct {
		fs   string
		mkfs []string
	}{
		{"btrfs", []string{"mkfs.btrfs", "-q"}},
		{"xfs", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}},
	} {
		t.Run(c.fs, func(t *testing.T) {
			dir := loopMount(t, c.fs, c.mkfs)
			if f := probe.Gather(t.Context(), dir); f.Reflink != 0 || f.FSType != c.fs {
				t.Errorf("the probe says %s, reflink: %v", f.FSType, f.Reflink)
			}
			t.Setenv("TMPDIR", dir)   // for the trees and the draft
			t.Run("copy", copyShares) // a test has one temporary directory
			noSubvolumes(t, dir)
		})
	}
}

func copyShares(t *testing.T) {
	content := make([]byte, 4<<20)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	stack := []snapshot.Tree{snapshottest.NewTree(t, snapshottest.Dir("d"), snapshottest.File("d/big", string(content))),
		snapshottest.NewTree(t, snapshottest.File("other", "x"))}
	d, why := snapshot.Choose(snapshot.Facts{Reflink: true, Force: "copy"})
	draft := snapshottest.NewDraft(t)
	a, err := d.Prepare(context.Background(), stack, draft)
	if err != nil {
		t.Fatalf("%s: %v", why, err)
	}
	defer a.Close()
	if n, shared := extents(t, filepath.Join(a.Root.Source, "d/big")); n == 0 || shared != n {
		t.Errorf("of %d extents %d are shared", n, shared)
	}
	if err := os.WriteFile(filepath.Join(a.Root.Source, "other"), []byte("y"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.Changes(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	for f, err := range layer.WalkUpper(a.Upper()) {
		if err != nil || f.Path != "." && f.Path != "other" {
			t.Errorf("changed: %q, %v", f.Path, err)
		}
	}
}

// loopMount mounts a new file system.
func loopMount(t *testing.T, fs string, mkfs []string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	program, err := exec.LookPath(mkfs[0])
	if err != nil {
		t.Skipf("needs %s", mkfs[0])
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 512<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	if out, err := exec.Command("mount", "-t", fs, "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs loop mounts of %s: %v: %s", fs, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fiemap is struct fiemap of linux/fiemap.h with room for extents.
type fiemap struct {
	start, length                  uint64
	flags, mapped, count, reserved uint32
	extents                        [64]struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
}

// extents counts a file's, and those that it shares with another.
func extents(t *testing.T, path string) (n, shared int) {
	t.Helper()
	const ioctlFiemap, flagSync, extentShared = 0xC020660B, 1, 0x2000
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := fiemap{length: 1 << 40, flags: flagSync, count: 64}
	if _, _, errno := syscall.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
		t.Fatalf("FIEMAP %s: %v", path, errno)
	}
	for _, e := range m.extents[:m.mapped] {
		if e.flags&extentShared != 0 {
			shared++
		}
	}
	return int(m.mapped), shared
}

// noSubvolumes checks that all is on one device: btrfs gives each subvolume its own.
func noSubvolumes(t *testing.T, dir string) {
	t.Helper()
	var top unix.Stat_t
	if err := unix.Stat(dir, &top); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil && st.Dev != top.Dev {
			t.Errorf("%s is a subvolume", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
