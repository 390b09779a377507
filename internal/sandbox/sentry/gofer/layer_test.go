package gofer

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sys"
)

// entries lists what is recorded in dir.
func entries(t *testing.T, dir string) map[string]oci.Entry {
	t.Helper()
	all := map[string]oci.Entry{}
	for f, err := range layer.WalkRecorded(dir) {
		if err != nil {
			t.Fatal(err)
		}
		all[f.Path] = f.Entry
	}
	return all
}

// show makes the same of what a sandbox sees.
func (c *client) show(path string, names ...string) sys.Inode {
	c.t.Helper()
	_, st := c.walk(names...)
	i := sys.Inode{Mode: uint32(st.Mode), UID: st.UID, GID: st.GID}
	if isDevice(i) {
		i.Rdev = unix.Mkdev(st.RdevMajor, st.RdevMinor)
	}
	return i
}

func TestLayersAndSandboxesReadEachOther(t *testing.T) {
	dir := xattrDir(t)
	c := mount(t, dir, Options{Owners: Recorded})
	c.ok("chmod", c.chmod(c.root, 0o1777))
	c.create(c.root, "f", "x", 0o4750, 70, 71)
	c.create(c.root, "plain", "x", 0o644, 0, 0)
	_, _ = c.inode(c.root.SymlinkAt(c.ctx, "l", "f", 5, 6))
	_, _ = c.inode(c.root.SymlinkAt(c.ctx, "roots", "f", 0, 0))
	_, _ = c.inode(c.root.MknodAt(c.ctx, "null", linux.ModeCharacterDevice|0o666, 0, 3, 3, 1))
	_, _ = c.inode(c.root.MknodAt(c.ctx, "pipe", linux.ModeNamedPipe|0o600, 8, 9, 0, 0))
	_, _ = c.inode(c.root.MkdirAt(c.ctx, "d", 0o2777, 5, 0))
	seen := entries(t, dir)
	if len(seen) != 8 {
		t.Errorf("%d entries", len(seen))
	}
	copied := xattrDir(t)
	if err := layer.Create(t.Context(), copied, layer.WalkRecorded(dir), layer.UnpackOptions{Recorded: true}); err != nil {
		t.Fatal(err)
	}
	c2 := mount(t, copied, Options{Owners: Recorded})
	for path, e := range seen {
		want := sys.Inode{Mode: e.Mode, UID: e.UID, GID: e.GID, Rdev: e.Rdev}
		names := []string{path}
		if path == "." {
			names = nil
		}
		if got := c.show(path, names...); got != want {
			t.Errorf("%s: the sandbox sees %+v, den reads %+v", path, got, want)
		}
		if got := c2.show(path, names...); got != want {
			t.Errorf("%s: a sandbox sees %+v of the copy, want %+v", path, got, want)
		}
	}
}

func TestRecordsOfOthersAreNotBelieved(t *testing.T) {
	forged := sys.Inode{Mode: unix.S_IFREG | 0o4755}.Format()
	dir := xattrDir(t)
	for name, mode := range map[string]os.FileMode{"anybody's": 0o666, "another's": 0o644, "own": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(path, sys.InodeAttr, forged, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if name == "another's" && os.Chown(path, 4242, 4242) != nil {
			_ = os.Remove(path)
		}
	}
	c := mount(t, dir, Options{Owners: Recorded})
	_, st := c.walk("anybody's")
	c.is(st, unix.S_IFREG|0o666, 0, 0)
	if c.exists("another's") {
		f, st := c.walk("another's")
		c.is(st, unix.S_IFREG|0o644, 4242, 4242)
		if err := c.chown(f, 5, 5); err != unix.EPERM {
			t.Errorf("chown of another's file: %v", err)
		}
	}
	_, st = c.walk("own")
	c.is(st, unix.S_IFREG|0o4755, 0, 0)
	c.stop()
	// Who chowns keeps no owners in records, so that none is his.
	c = mount(t, dir, Options{Owners: Real})
	_, st = c.walk("own")
	if st.Mode != unix.S_IFREG|0o644 {
		t.Errorf("%#o", st.Mode)
	}
}
