package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInodeComesBackAsItWasRecorded(t *testing.T) {
	for _, want := range []Inode{
		{Mode: unix.S_IFREG | 0o4755},
		{Mode: unix.S_IFREG, UID: 999, GID: 1<<32 - 2},
		{Mode: unix.S_IFDIR | 0o1777, UID: 70, GID: 70},
		{Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
		{Mode: unix.S_IFBLK | 0o660, GID: 6, Rdev: unix.Mkdev(1<<12-1, 1<<20-1)},
		{Mode: unix.S_IFIFO | 0o600}, {Mode: unix.S_IFSOCK | 0o777},
	} {
		if got, ok := ParseInode(want.Format()); !ok || got != want {
			t.Errorf("%+v: %+v, %v", want, got, ok)
		}
	}
}

func TestInodeOfAnotherFormatIsNone(t *testing.T) {
	good := Inode{Mode: unix.S_IFREG | 0o644, UID: 1, GID: 2}
	for name, change := range map[string]func([]byte) []byte{
		"empty":        func([]byte) []byte { return nil },
		"short":        func(b []byte) []byte { return b[:19] },
		"long":         func(b []byte) []byte { return append(b, 0) },
		"version":      func(b []byte) []byte { b[0] = 2; return b },
		"reserved":     func(b []byte) []byte { b[1] = 1; return b },
		"no type":      func(b []byte) []byte { b[3] = 0; return b },
		"nobody":       func(b []byte) []byte { copy(b[4:], "\xff\xff\xff\xff"); return b },
		"no group":     func(b []byte) []byte { copy(b[8:], "\xff\xff\xff\xff"); return b },
		"file, device": func(b []byte) []byte { b[16] = 1; return b },
		"major":        func(b []byte) []byte { b[14] = 1; return b },
	} {
		if i, ok := ParseInode(change(good.Format())); ok {
			t.Errorf("%s: read as %+v", name, i)
		}
	}
}

func TestRecordFitsOnlyWhatItCanStandFor(t *testing.T) {
	for _, c := range []struct {
		record, mode uint32
		size         int64
		want         bool
	}{
		{unix.S_IFREG, unix.S_IFREG, 9, true},
		{unix.S_IFCHR, unix.S_IFREG, 0, true},
		{unix.S_IFCHR, unix.S_IFREG, 1, false},
		{unix.S_IFDIR, unix.S_IFREG, 0, false},
		{unix.S_IFLNK, unix.S_IFREG, 0, false},
		{unix.S_IFDIR, unix.S_IFDIR, 4096, true},
		{unix.S_IFREG, unix.S_IFDIR, 4096, false},
		{unix.S_IFLNK, unix.S_IFLNK, 3, false},
	} {
		if got := (Inode{Mode: c.record}).Fits(c.mode, c.size); got != c.want {
			t.Errorf("record %#o, file %#o of %d bytes: %v", c.record, c.mode, c.size, got)
		}
	}
}

func TestNamesComeBackAsTheyWereRecorded(t *testing.T) {
	want := Names{StandIns: true, Links: &Owner{1000, 1 << 20}, Of: map[string]Inode{
		"a":                      {Mode: unix.S_IFLNK | 0o777, UID: 1},
		strings.Repeat("n", 255): {Mode: unix.S_IFIFO | 0o6600, UID: 1<<32 - 2, GID: 70},
	}}
	got, ok := ParseNames(want.Format())
	if !ok || fmt.Sprint(got.Of) != fmt.Sprint(want.Of) || !got.StandIns || *got.Links != *want.Links {
		t.Errorf("%+v, %v", got, ok)
	}
}

func links(n int, o Owner) map[string]Owner {
	m := map[string]Owner{}
	for i := range n {
		m[fmt.Sprintf("link-%04d", i)] = o
	}
	return m
}

func TestShrunkNamesSayTheSame(t *testing.T) {
	n := Names{}
	on := links(600, Owner{})
	for i := range 500 {
		n.Set(fmt.Sprintf("link-%04d", i), Inode{Mode: unix.S_IFLNK | 0o777, UID: 1000, GID: 1000})
	}
	n.Set("pipe", Inode{Mode: unix.S_IFIFO | 0o600, UID: 5})
	n.Shrink(on)
	if size := len(n.Format()); size > MaxNames {
		t.Errorf("%d bytes", size)
	}
	for name, want := range map[string]uint32{"link-0000": 1000, "link-0499": 1000, "link-0500": 0, "link-0599": 0} {
		i, ok := n.Lookup(name, unix.S_IFLNK)
		if !ok || i.UID != want {
			t.Errorf("%s: %+v, %v; want owner %d", name, i, ok, want)
		}
	}
	if i, ok := n.Lookup("pipe", unix.S_IFIFO); !ok || i.UID != 5 {
		t.Errorf("pipe: %+v, %v", i, ok)
	}
	if _, ok := n.Lookup("pipe", unix.S_IFSOCK); ok {
		t.Error("a socket has a pipe's record")
	}
}

// xattrDir is a directory with user attributes.
func xattrDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "user.trial", []byte("y"), 0); err != nil {
		t.Skipf("%s keeps no user attributes: %v", dir, err)
	}
	return dir
}

func TestManyOwnedLinksFitTheirDirectory(t *testing.T) {
	dir := xattrDir(t)
	d := open(t, dir)
	self := Self()
	for i := range 400 {
		name := fmt.Sprintf("link-with-a-longer-name-%04d", i)
		if err := os.Symlink("x", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		err := ChangeNames(int(d.Fd()), self, func(n *Names) bool {
			return n.Set(name, Inode{Mode: unix.S_IFLNK | 0o777, UID: 1000, GID: 1000})
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	n, err := RecordedNames(int(d.Fd()), self)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 400 {
		name := fmt.Sprintf("link-with-a-longer-name-%04d", i)
		if got, ok := n.Lookup(name, unix.S_IFLNK); !ok || got.UID != 1000 || got.GID != 1000 {
			t.Fatalf("%s: %+v, %v", name, got, ok)
		}
	}
	if err := ChangeNames(int(d.Fd()), self, func(n *Names) bool { *n = Names{}; return true }); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Getxattr(dir, NamesAttr, make([]byte, 10)); !errors.Is(err, unix.ENODATA) {
		t.Errorf("empty records are kept: %v", err)
	}
}

func TestRecordsThatDoNotFitAreRefused(t *testing.T) {
	d := open(t, xattrDir(t))
	err := ChangeNames(int(d.Fd()), Self(), func(n *Names) bool {
		for i := range 400 {
			n.Set(fmt.Sprintf("pipe-%04d", i), Inode{Mode: unix.S_IFIFO, UID: 1})
		}
		return true
	})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
}

func TestRecordersDoNotUndoEachOther(t *testing.T) {
	dir := xattrDir(t)
	d := open(t, dir)
	var wg sync.WaitGroup
	for id := range uint32(6) {
		wg.Go(func() {
			for i := range 25 {
				err := ChangeNames(int(d.Fd()), Self(), func(n *Names) bool {
					runtime.Gosched() // between reading and writing
					return n.Set(fmt.Sprintf("%d-%d", id, i), Inode{Mode: unix.S_IFIFO | 0o600, UID: id})
				})
				if err != nil {
					t.Errorf("%d, %d: %v", id, i, err)
				}
			}
		})
	}
	wg.Wait()
	n, err := RecordedNames(int(d.Fd()), Self())
	if err != nil || len(n.Of) != 6*25 {
		t.Errorf("%d records, %v", len(n.Of), err)
	}
}

func FuzzParseInode(f *testing.F) {
	f.Add(Inode{Mode: unix.S_IFCHR | 0o644, UID: 1, Rdev: unix.Mkdev(1, 3)}.Format())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, ok := ParseInode(b); ok && !bytes.Equal(i.Format(), b) {
			t.Errorf("%x is read as %+v, which is %x", b, i, i.Format())
		}
	})
}

func FuzzParseNames(f *testing.F) {
	n := Names{Links: &Owner{1, 2}, StandIns: true}
	n.Set("a", Inode{Mode: unix.S_IFLNK | 0o777, UID: 500})
	n.Set("b", Inode{Mode: unix.S_IFSOCK | 0o600, GID: 1 << 31})
	f.Add(n.Format())
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := ParseNames(b)
		if !ok || len(b) == 2 && b[1] == 0 {
			return
		}
		if !bytes.Equal(n.Format(), b) {
			t.Errorf("%x is read as %+v, which is %x", b, n, n.Format())
		}
		for name := range n.Of {
			if strings.ContainsAny(name, "/\x00") || len(name) > 255 {
				t.Errorf("name %q", name)
			}
		}
	})
}

func TestRecordsThatOthersCouldWriteCountForNothing(t *testing.T) {
	self := Owner{UID: 1000}
	for _, c := range []struct {
		mode, uid uint32
		want      bool
	}{{0o755, 1000, true}, {0o600, 1000, true}, {0o644, 1001, false}, {0o664, 1000, false}, {0o646, 1000, false}, {0o1777, 1000, false}} {
		if got := self.Keeps(c.mode, c.uid); got != c.want {
			t.Errorf("%#o of %d: %v", c.mode, c.uid, got)
		}
	}
	for mode := range uint32(1 << 12) {
		for _, kind := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFCHR} {
			if host := (Inode{Mode: kind | mode}).HostMode(); !self.Keeps(host, 1000) || host&0o600 != 0o600 || host&0o6000 != 0 {
				t.Fatalf("%#o is %#o on disk", kind|mode, host)
			}
		}
	}
	dir := xattrDir(t)
	d := open(t, dir)
	n := Names{StandIns: true}
	if err := unix.Setxattr(dir, NamesAttr, n.Format(), 0); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]bool{0o755: true, 0o777: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if got, err := RecordedNames(int(d.Fd()), Self()); err != nil || got.StandIns != want {
			t.Errorf("%v: %+v, %v", mode, got, err)
		}
	}
}
