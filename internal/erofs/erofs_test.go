package erofs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// item is an entry with content.
type item struct {
	oci.Entry
	data string
}

func at(path string, mode uint32) item {
	return item{Entry: oci.Entry{Path: path, Mode: mode, ModTime: time.Unix(1700000000, 5)}}
}

func dir(path string) item { return at(path, unix.S_IFDIR|0o755) }

func reg(path, data string) item {
	i := at(path, unix.S_IFREG|0o644)
	i.data, i.Size = data, int64(len(data))
	return i
}

func symlink(path, target string) item {
	i := at(path, unix.S_IFLNK|0o777)
	i.Link = target
	return i
}

func hardlink(path, target string) item {
	i := at(path, unix.S_IFREG|0o600)
	i.Hardlink, i.Link = true, target
	return i
}

func gone(path string) item { return item{Entry: oci.Entry{Path: path, Whiteout: true}} }

func opaque(path string) item { return item{Entry: oci.Entry{Path: path, Opaque: true}} }

func owned(i item, uid, gid uint32) item {
	i.UID, i.GID = uid, gid
	return i
}

func device(path string, mode uint32, major, minor uint32) item {
	i := at(path, mode)
	i.Rdev = unix.Mkdev(major, minor)
	return i
}

func attributed(i item, name, value string) item {
	i.Xattrs = map[string][]byte{name: []byte(value)}
	return i
}

func write(t testing.TB, o Options, items ...item) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	w, err := Create(path, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		if err := add(w, i); err != nil {
			t.Fatalf("%s: %v", i.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func add(w *Writer, i item) error {
	offset, err := w.Add(&i.Entry)
	if err == nil && i.data != "" {
		_, err = unix.Pwrite(w.Fd(), []byte(i.data), offset)
	}
	return err
}

// read lists an image, one line for each name, in order.
func read(t testing.TB, path string) []string {
	t.Helper()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	root, err := r.OpenRoot()
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{describe(t, r, ".", root.Inode)}
	return append(lines, list(t, r, root, "")...)
}

func list(t testing.TB, r *Reader, d *Dir, prefix string) (lines []string) {
	for _, name := range d.Names() {
		n, err := d.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, describe(t, r, prefix+name, n))
		if n.Mode&unix.S_IFMT == unix.S_IFDIR {
			sub, err := d.Dir(name)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, list(t, r, sub, prefix+name+"/")...)
		}
	}
	return lines
}

func describe(t testing.TB, r *Reader, path string, n Inode) string {
	if n.Whiteout {
		return path + " gone"
	}
	line := fmt.Sprintf("%s %o %d:%d x%d", path, n.Mode, n.UID, n.GID, n.Links)
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		c, err := r.Content(n)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 40 {
			data = fmt.Appendf(nil, "%d bytes", len(data))
		}
		line += fmt.Sprintf(" %q", data)
	case unix.S_IFLNK:
		target, err := r.Readlink(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(target) > 40 {
			target = fmt.Sprintf("%d bytes", len(target))
		}
		line += " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		line += fmt.Sprintf(" %d,%d", unix.Major(n.Rdev), unix.Minor(n.Rdev))
	}
	a, err := r.Attrs(n)
	if err != nil {
		t.Fatal(err)
	}
	if a.Opaque {
		line += " opaque"
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range a.Keep {
			if !yield(name) {
				return
			}
		}
	}) {
		line += fmt.Sprintf(" %s=%q", name, a.Keep[name])
	}
	return line
}

func check(t *testing.T, got, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// variety is one of everything.
func variety() []item {
	return []item{
		owned(dir("."), 1, 2),
		dir("bin"), owned(reg("bin/su", "#!"), 0, 42), hardlink("bin/su2", "bin/su"), symlink("bin/sh", "su"),
		at("pipe", unix.S_IFIFO|0o600), device("dev/null", unix.S_IFCHR|0o666, 1, 3), device("dev/sda", unix.S_IFBLK|0o660, 259, 1<<19+5),
		gone("etc/old"), opaque("var/lib"), reg("var/lib/x", "x"), opaque("var/lib/deep"),
		attributed(reg("bin/ping", "ping"), sys.CapabilityAttr, "\x01\x00cap"), hardlink("sbin/ping", "bin/ping"),
		attributed(dir("home"), "user.a", ""), owned(reg("empty", ""), 1<<31+7, 1<<32-2),
		symlink("far", strings.Repeat("t", maxTarget)), symlink("long", strings.Repeat("t", blockSize-inodeSize)),
		reg("big", strings.Repeat("b", 3*blockSize+1)),
	}
}

func TestEverythingIsReadBack(t *testing.T) {
	check(t, read(t, write(t, Options{}, variety()...)), []string{
		". 40755 1:2 x8",
		"big 100644 0:0 x1 \"12289 bytes\"",
		"bin 40755 0:0 x2",
		"bin/ping 100644 0:0 x2 \"ping\" security.capability=\"\\x01\\x00cap\"",
		"bin/sh 120777 0:0 x1 -> su",
		"bin/su 100644 0:42 x2 \"#!\"",
		"bin/su2 100644 0:42 x2 \"#!\"",
		"dev 40755 0:0 x2",
		"dev/null 20666 0:0 x1 1,3",
		"dev/sda 60660 0:0 x1 259,524293",
		"empty 100644 2147483655:4294967294 x1 \"\"",
		"etc 40755 0:0 x2",
		"etc/old gone",
		"far 120777 0:0 x1 -> 4095 bytes",
		"home 40755 0:0 x2 user.a=\"\"",
		"long 120777 0:0 x1 -> 4032 bytes",
		"pipe 10600 0:0 x1",
		"sbin 40755 0:0 x2",
		"sbin/ping 100644 0:0 x2 \"ping\" security.capability=\"\\x01\\x00cap\"",
		"var 40755 0:0 x3",
		"var/lib 40755 0:0 x3 opaque",
		"var/lib/deep 40755 0:0 x2 opaque",
		"var/lib/x 100644 0:0 x1 \"x\"",
	})
}

func TestLaterEntriesReplaceEarlierOnes(t *testing.T) {
	check(t, read(t, write(t, Options{},
		reg("a", "first"), reg("a", "second"), dir("d"), reg("d/x", "1"), owned(dir("d"), 5, 5), reg("d/y", "2"),
		dir("e"), reg("e/x", ""), reg("e", "file"), gone("w"), dir("w"), gone("v"), reg("v", "v"), reg("u", "u"), gone("u"),
		dir("t"), gone("t"), gone("s/x"), reg("s/x/y", ""),
		reg("h", "h"), hardlink("h2", "h"), reg("h", "new"), hardlink("h2", "h2"),
	)), []string{
		". 40755 0:0 x6",
		"a 100644 0:0 x1 \"second\"",
		"d 40755 5:5 x2", "d/x 100644 0:0 x1 \"1\"", "d/y 100644 0:0 x1 \"2\"",
		"e 100644 0:0 x1 \"file\"",
		"h 100644 0:0 x1 \"new\"", "h2 100644 0:0 x1 \"h\"",
		"s 40755 0:0 x3", "s/x 40755 0:0 x2 opaque", "s/x/y 100644 0:0 x1 \"\"",
		"t 40755 0:0 x2 opaque", "u 100644 0:0 x1 \"u\"", "v 100644 0:0 x1 \"v\"", "w 40755 0:0 x2 opaque",
	})
}

func TestLinksAmongTheParentsStayInside(t *testing.T) {
	check(t, read(t, write(t, Options{},
		dir("usr/lib"), symlink("lib", "usr/lib"), reg("lib/a", "a"), symlink("abs", "/../usr/./new"), reg("abs/b", "b"), symlink("up", "../../.."), reg("up/c", "c"),
		hardlink("lib/d", "abs/b"),
	)), []string{
		". 40755 0:0 x3", "abs 120777 0:0 x1 -> /../usr/./new", "c 100644 0:0 x1 \"c\"", "lib 120777 0:0 x1 -> usr/lib", "up 120777 0:0 x1 -> ../../..",
		"usr 40755 0:0 x4", "usr/lib 40755 0:0 x2", "usr/lib/a 100644 0:0 x1 \"a\"", "usr/lib/d 100644 0:0 x2 \"b\"",
		"usr/new 40755 0:0 x2", "usr/new/b 100644 0:0 x2 \"b\"",
	})
}

func TestParentsComeFromTheLayersBelow(t *testing.T) {
	below := func(path string) (*oci.Entry, error) {
		if path == "tmp" {
			return &oci.Entry{Mode: unix.S_IFDIR | 0o1777, UID: 3}, nil
		}
		return nil, nil
	}
	check(t, read(t, write(t, Options{Parent: below}, reg("tmp/x/y", ""))), []string{
		". 40755 0:0 x3", "tmp 41777 3:0 x3", "tmp/x 40755 0:0 x2", "tmp/x/y 100644 0:0 x1 \"\"",
	})
}

func TestWhatMakesNoSenseIsRefused(t *testing.T) {
	for name, items := range map[string][]item{
		"file as parent":        {reg("a", ""), reg("a/b", "")},
		"loop":                  {symlink("a", "a"), reg("a/b", "")},
		"missing target":        {hardlink("a", "b")},
		"directory as target":   {dir("b"), hardlink("a", "b")},
		"whiteout as target":    {gone("b"), hardlink("a", "b")},
		"target in its way":     {reg("a/b", ""), hardlink("a", "a/b")},
		"socket":                {at("a", unix.S_IFSOCK|0o600)},
		"no device":             {device("a", unix.S_IFCHR, 0, 0)},
		"opaque file":           {reg("a", ""), opaque("a")},
		"root as file":          {reg(".", "")},
		"long name":             {reg(strings.Repeat("n", 256), "")},
		"negative size":         {{Entry: oci.Entry{Path: "a", Mode: unix.S_IFREG, Size: -1}}},
		"empty link":            {symlink("a", "")},
		"link without an end":   {symlink("a", strings.Repeat("t", 4096))},
		"deep without an end":   {reg(strings.Repeat("d/", maxDepth+1)+"f", "")},
		"a dot of a name":       {reg("a/..", "")},
		"type that nobody has":  {at("a", 0o030000)},
		"hard link's directory": {reg("a", ""), reg("f", ""), hardlink("g", "a/f")},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := Create(filepath.Join(t.TempDir(), "i"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				if err = add(w, i); err != nil {
					break
				}
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v, want an invalid argument", err)
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(filepath.Dir(w.Path())); len(left) != 0 {
				t.Errorf("Abort left %v", left)
			}
		})
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	w, err := Create(filepath.Join(t.TempDir(), "i"), Options{MaxDirs: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Abort() }()
	e := oci.Entry{Path: "a", Mode: unix.S_IFREG, Size: 1<<63 - 1}
	if _, err := w.Add(&e); err == nil {
		t.Error("room for a file of 8 EiB")
	}
	if err := add(w, dir("a/b/c")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("two directories: %v", err)
	}
}

func TestSameEntriesGiveSameBytes(t *testing.T) {
	one, two := write(t, Options{}, variety()...), write(t, Options{}, variety()...)
	for _, suffix := range []string{"", OpaqueSuffix, AttrsSuffix} {
		a, err := os.ReadFile(one + suffix)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(two + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("image%s differs", suffix)
		}
	}
}

func TestPlainImageHasNoSidecars(t *testing.T) {
	path := write(t, Options{}, dir("a"), reg("a/b", "b"), gone("c"), opaque("."))
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v; want the image alone", left, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o444 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOpaqueImageHidesTheTopmost(t *testing.T) {
	path := write(t, Options{}, opaque("."), opaque("a/b"), opaque("a/b/c"), dir("d"), opaque("d/e"))
	check(t, read(t, path+OpaqueSuffix), []string{
		". 40755 0:0 x4", "a 40755 0:0 x2", "a/b gone", "d 40755 0:0 x2", "d/e gone",
	})
}

func TestTimesOfAnyCentury(t *testing.T) {
	times := []time.Time{time.Unix(-1<<40, 7), time.Unix(-1, 999_999_999), time.Unix(0, 0), time.Unix(1<<31, 0), time.Unix(1<<40, 1)}
	var items []item
	for i, at := range times {
		f := reg(fmt.Sprint(i), "")
		f.ModTime = at
		items = append(items, f)
	}
	r, err := Open(write(t, Options{}, items...))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	root, err := r.OpenRoot()
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range times {
		n, err := root.Lookup(fmt.Sprint(i))
		if err != nil || !n.ModTime.Equal(at) {
			t.Errorf("%v, %v, want %v", n.ModTime, err, at)
		}
	}
}

func TestFileLargerThanFourGiB(t *testing.T) {
	const size = 5<<30 + 3
	path := filepath.Join(t.TempDir(), "i")
	w, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	big := oci.Entry{Path: "big", Mode: unix.S_IFREG | 0o644, Size: size}
	offset, err := w.Add(&big)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pwrite(w.Fd(), []byte("end"), offset+size-3); err != nil {
		_ = w.Abort()
		t.Skipf("the temporary directory takes no file of 5 GiB: %v", err)
	}
	if err := add(w, reg("small", "behind it")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("%d blocks, %v: holes are not kept", st.Blocks, err)
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	root, err := r.OpenRoot()
	if err != nil {
		t.Fatal(err)
	}
	n, err := root.Lookup("big")
	if err != nil || n.Size != size {
		t.Fatalf("size %d, %v", n.Size, err)
	}
	c, err := r.Content(n)
	if err != nil {
		t.Fatal(err)
	}
	var tail [4]byte
	if _, err := c.ReadAt(tail[:], size-4); err != nil || string(tail[:]) != "\x00end" {
		t.Errorf("tail %q, %v", tail, err)
	}
	if small, err := root.Lookup("small"); err != nil || small.Size != 9 {
		t.Errorf("small has %d bytes, %v", small.Size, err)
	}
}

func TestLargeDirectory(t *testing.T) {
	var items []item
	var want []string
	for i := range 3000 {
		name := fmt.Sprintf("%0*d", 1+i%200, i)
		items = append(items, reg("d/"+name, ""))
		want = append(want, name)
	}
	slices.Sort(want)
	r, err := Open(write(t, Options{}, items...))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	root, err := r.OpenRoot()
	if err != nil {
		t.Fatal(err)
	}
	d, err := root.Dir("d")
	if err != nil {
		t.Fatal(err)
	}
	check(t, d.Names(), slices.Compact(want))
}

func TestFailureLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "i")
	if err := os.WriteFile(path+AttrsSuffix, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := add(w, attributed(reg("a", "a"), "user.x", "y")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err == nil {
		t.Error("wrote over a foreign sidecar")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the image is still there: %v", err)
	}
}
