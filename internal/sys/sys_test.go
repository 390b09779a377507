package sys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestExclusiveLockKeepsOthersOut(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	if ok, err := TryFlock(a, unix.LOCK_EX); !ok || err != nil {
		t.Fatalf("first lock: %v, %v", ok, err)
	}
	if ok, err := TryFlock(b, unix.LOCK_SH); ok || err != nil {
		t.Fatalf("second lock: %v, %v; want false, nil", ok, err)
	}
	if err := Flock(a, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if ok, err := TryFlock(b, unix.LOCK_SH); !ok || err != nil {
		t.Fatalf("after unlock: %v, %v", ok, err)
	}
}

func TestLockTravelsThroughRename(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.Mkdir(from, 0o755); err != nil {
		t.Fatal(err)
	}
	f := open(t, from)
	if err := Flock(f, unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if err := RenameNoReplace(from, to); err != nil {
		t.Fatal(err)
	}
	if ok, _ := TryFlock(open(t, to), unix.LOCK_EX); ok {
		t.Error("the renamed directory is not locked")
	}
	if same, err := SameInode(f, from); same || err != nil {
		t.Errorf("old name: %v, %v; want false, nil", same, err)
	}
	if same, err := SameInode(f, to); !same || err != nil {
		t.Errorf("new name: %v, %v; want true, nil", same, err)
	}
}

func TestRenameNoReplaceKeepsTheFirst(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := RenameNoReplace(a, b); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v, want EEXIST", err)
	}
}

func TestRemoveTreeOpensClosedDirectories(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	if err := os.MkdirAll(filepath.Join(top, "a/b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	for _, p := range []string{filepath.Join(top, "a/b/c/file"), outside} {
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(top, "a/link")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"a/b/c", "a/b", "a"} {
		mode := os.FileMode(0)
		if p == "a/b" {
			mode = 0o555
		}
		if err := os.Chmod(filepath.Join(top, p), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveTree(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if _, err := os.Lstat(outside); err != nil {
		t.Errorf("followed a symbolic link: %v", err)
	}
	if err := RemoveTree(top); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

// Whatever is made of "/" must not be the kernel's own root.
func TestRemoveAllAtTakesNamesOnly(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, name := range []string{"", ".", "..", "none/none", "/none/none"} {
		if err := RemoveAllAt(int(dir.Fd()), name); !errors.Is(err, unix.EINVAL) {
			t.Errorf("remove %q: %v, want EINVAL", name, err)
		}
	}
}

func TestRemoveTreeGoesDeeperThanPathsReach(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Fatal(err)
	}
	// Deeper than maxRemoveDepth, and a path longer than PATH_MAX.
	name := strings.Repeat("d", 100)
	fd := int(open(t, top).Fd())
	var open []int
	for range 3 * maxRemoveDepth {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		open, fd = append(open, sub), sub
	}
	for _, fd := range open {
		_ = unix.Close(fd)
	}
	if err := RemoveTree(top); err != nil {
		t.Fatal(err)
	}
}

func TestFileSystemHasAName(t *testing.T) {
	name, err := FSName(t.TempDir())
	if err != nil || name == "" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestBootIDStays(t *testing.T) {
	a, err := BootID()
	if err != nil {
		t.Skip("needs /proc: ", err)
	}
	if b, _ := BootID(); a != b {
		t.Errorf("got %s, then %s", a, b)
	}
}
