package layer

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// recordDir is a directory on a file system with user attributes.
func recordDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "user.trial", []byte("y"), 0); err != nil {
		t.Skipf("%s keeps no user attributes: %v", dir, err)
	}
	if err := unix.Removexattr(dir, "user.trial"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func owned(f File, mode, uid, gid uint32) File {
	f.Mode, f.UID, f.GID = f.Mode&unix.S_IFMT|mode, uid, gid
	return f
}

// severalOwners are entries that no single user could make.
func severalOwners() []File {
	null := owned(entry("dev/null", unix.S_IFCHR), 0o666, 0, 3)
	null.Rdev = unix.Mkdev(1, 3)
	disk := owned(entry("dev/sda", unix.S_IFBLK), 0o660, 0, 6)
	disk.Rdev = unix.Mkdev(8, 0)
	linked := hardlink("dev/zlink", "dev/link")
	linked.Mode, linked.UID, linked.GID = unix.S_IFLNK|0o777, 999, 998
	again := hardlink("dir/null", "dev/null")
	again.Mode, again.UID, again.GID, again.Rdev = null.Mode, null.UID, null.GID, null.Rdev
	return []File{
		owned(dir("."), 0o1777, 0, 0),
		owned(dir("dev"), 0o755, 0, 0), null, disk,
		owned(symlink("dev/link", "null"), 0o777, 999, 998), linked,
		owned(symlink("dev/roots", "x"), 0o777, 0, 0),
		owned(dir("dir"), 0o2070, 70, 71), again,
		owned(reg("dir/none", "secret"), 0, 70, 70),
		owned(reg("dir/plain", "x"), 0o644, 0, 0),
		owned(reg("dir/su", "elf"), 0o4755, 0, 0),
		owned(reg("dir/wide", "elf"), 0o666, 5, 5),
		owned(entry("pipe", unix.S_IFIFO), 0o622, 4, 4),
		owned(symlink("wide-link", "dir"), 0o777, 4, 5),
	}
}

func TestRecordedTreeIsReadAsItWasWritten(t *testing.T) {
	ctx := context.Background()
	want, a := tarOf(t, sorted(severalOwners()...))
	fill := map[string]func(dir string) error{
		"create": func(dir string) error {
			return Create(ctx, dir, sorted(severalOwners()...), UnpackOptions{Recorded: true})
		},
		"unpack": func(dir string) error {
			_, err := Unpack(ctx, bytes.NewReader(want), dir, UnpackOptions{Recorded: true})
			return err
		},
	}
	for name, fill := range fill {
		t.Run(name, func(t *testing.T) {
			dir := recordDir(t)
			if err := fill(dir); err != nil {
				t.Fatal(err)
			}
			if _, b := tarOf(t, WalkRecorded(dir)); b.DiffID != a.DiffID {
				t.Errorf("another tar: %s", cmp.Diff(list(t, sorted(severalOwners()...)), list(t, WalkRecorded(dir))))
			}
			for f, err := range WalkRecorded(dir) {
				if err != nil {
					t.Fatal(err)
				}
				if f.Path == "." && name == "create" && f.Mode != unix.S_IFDIR|0o1777 {
					t.Errorf("root is %#o", f.Mode)
				}
			}
			self := sys.Self()
			for f, err := range WalkPlain(dir) {
				if err != nil {
					t.Fatal(err)
				}
				if f.UID != self.UID || f.GID != self.GID || f.Mode&0o6000 != 0 {
					t.Errorf("%s on disk: %#o %d:%d", f.Path, f.Mode, f.UID, f.GID)
				}
			}
		})
	}
}

func TestRecordsAreIgnoredWhereNobodyKeepsThem(t *testing.T) {
	dir := recordDir(t)
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	forged := sys.Inode{Mode: unix.S_IFBLK | 0o666, Rdev: unix.Mkdev(8, 0)}
	if err := unix.Setxattr(path, sys.InodeAttr, forged.Format(), 0); err != nil {
		t.Fatal(err)
	}
	for _, walk := range []string{"upper", "plain", "recorded, others may write"} {
		files := WalkUpper(dir)
		if walk == "plain" {
			files = WalkPlain(dir)
		} else if walk != "upper" {
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			files = WalkRecorded(dir)
		}
		for _, e := range list(t, files) {
			if e.Path == "f" && e.Mode&unix.S_IFMT != unix.S_IFREG {
				t.Errorf("%s: %#o", walk, e.Mode)
			}
		}
	}
}
