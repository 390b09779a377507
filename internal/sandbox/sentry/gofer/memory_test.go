package gofer

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
)

// bareDir is a directory on a file system without user attributes.
func bareDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("ramfs", dir, "ramfs", 0, "mode=0755"); err != nil {
		t.Skipf("mount ramfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestOwnersAreRememberedWhereNothingKeepsThem(t *testing.T) {
	dir := bareDir(t)
	tree, err := Open(openRoot(t, dir), Options{Owners: Recorded})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(tree.Warning(), dir) {
		t.Errorf("warning: %q", tree.Warning())
	}
	_ = tree.Close()
	c := mount(t, dir, Options{Owners: Recorded})
	f := c.create(c.root, "f", "", 0o600, 999, 999)
	_, _ = c.inode(c.root.SymlinkAt(c.ctx, "l", "x", 5, 6))
	_, _ = c.inode(c.root.MknodAt(c.ctx, "null", linux.ModeCharacterDevice|0o666, 0, 0, 3, 1))
	c.ok("rename", c.root.RenameAt(c.ctx, "l", c.root.ID(), "m", 0))
	_, st := c.walk("m")
	c.is(st, unix.S_IFLNK|0o777, 5, 6)
	c.is(c.stat(f), unix.S_IFREG|0o600, 999, 999)
	_, st = c.walk("null")
	c.is(st, unix.S_IFCHR|0o666, 0, 0)
	c.ok("unlink", c.root.UnlinkAt(c.ctx, "f", 0))
	c.create(c.root, "g", "", 0o600, 7, 7)
	c.ok("replace", c.root.RenameAt(c.ctx, "m", c.root.ID(), "g", 0))
	_, st = c.walk("g")
	c.is(st, unix.S_IFLNK|0o777, 5, 6)
	c.ok("chown", c.chown(c.root, 3, 3))
	c.is(c.stat(c.root), unix.S_IFDIR|0o755, 3, 3)
}
