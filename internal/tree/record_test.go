package tree

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

func TestRecordedViewShowsWhatFilesShouldBe(t *testing.T) {
	root := make1(t, "f=x", "dev=", "d/l->f")
	self := sys.Self()
	record := func(name string, i sys.Inode) {
		t.Helper()
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if err := sys.RecordOn(int(f.Fd()), &st, i, self); err != nil {
			t.Skipf("record: %v", err)
		}
	}
	record("f", sys.Inode{Mode: unix.S_IFREG | 0o4711, UID: 70, GID: 71})
	record("dev", sys.Inode{Mode: unix.S_IFCHR | 0o600, Rdev: unix.Mkdev(1, 5)})
	record("d", sys.Inode{Mode: unix.S_IFDIR | 0o1777, UID: 5})
	d, err := os.Open(filepath.Join(root, "d"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	link := sys.Inode{Mode: unix.S_IFLNK | 0o777, UID: 8, GID: 9}
	if err := sys.ChangeNames(int(d.Fd()), self, func(n *sys.Names) bool { return n.Set("l", link) }); err != nil {
		t.Fatal(err)
	}
	fs, err := Recorded(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fs.Close() }()
	got := map[string]oci.Entry{}
	if err := Walk(fs, "", func(e *oci.Entry) error { got[e.Path] = *e; return nil }); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]sys.Inode{
		"f": {Mode: unix.S_IFREG | 0o4711, UID: 70, GID: 71}, "d": {Mode: unix.S_IFDIR | 0o1777, UID: 5},
		"d/l": link, "dev": {Mode: unix.S_IFCHR | 0o600, Rdev: unix.Mkdev(1, 5)},
	} {
		e := got[path]
		if i := (sys.Inode{Mode: e.Mode, UID: e.UID, GID: e.GID, Rdev: e.Rdev}); i != want {
			t.Errorf("%s: %+v, want %+v", path, i, want)
		}
	}
	if e := got["."]; e.UID != 0 || e.GID != 0 {
		t.Errorf("the root is %d:%d", e.UID, e.GID)
	}
	rc, err := fs.Open("f")
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Close()
}
