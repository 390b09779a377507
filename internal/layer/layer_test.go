package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// mine owns what the tests make, so that they need no privilege.
var mine = Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the test makes device nodes and other users' files")
	}
}

// reg, dir and the like make entries owned by the user who runs the test.
func reg(path, content string) File {
	f := entry(path, unix.S_IFREG|0o644)
	f.Size = int64(len(content))
	f.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
	return f
}

func entry(path string, mode uint32) File {
	return File{Entry: oci.Entry{Path: path, Mode: mode, UID: mine.UID, GID: mine.GID, ModTime: time.Unix(1700000000, 0)}}
}

func dir(path string) File { return entry(path, unix.S_IFDIR|0o755) }

func symlink(path, target string) File {
	f := entry(path, unix.S_IFLNK|0o777)
	f.Link = target
	return f
}

func hardlink(path, target string) File {
	f := entry(path, unix.S_IFREG|0o644)
	f.Hardlink, f.Link = true, target
	return f
}

func whiteoutOf(path string) File { return File{Entry: oci.Entry{Path: path, Whiteout: true}} }

func all(files ...File) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}
}

func sorted(files ...File) iter.Seq2[File, error] {
	slices.SortFunc(files, func(a, b File) int { return ComparePaths(a.Path, b.Path) })
	return all(files...)
}

func tarOf(t testing.TB, files iter.Seq2[File, error]) ([]byte, Applied) {
	t.Helper()
	var buf bytes.Buffer
	a, err := WriteTar(context.Background(), &buf, files)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), a
}

func unpackTo(t testing.TB, data []byte) (string, Applied) {
	t.Helper()
	dir := t.TempDir()
	a, err := Unpack(context.Background(), bytes.NewReader(data), dir, UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return dir, a
}

// list reads files into memory.
func list(t testing.TB, files iter.Seq2[File, error]) []oci.Entry {
	t.Helper()
	var entries []oci.Entry
	for f, err := range files {
		if err != nil {
			t.Fatal(err)
		}
		if f.Path != "." {
			entries = append(entries, f.Entry)
		}
	}
	return entries
}

func TestCanonicalTarIsWhatGoReads(t *testing.T) {
	long := strings.Repeat("d", 90) + "/" + strings.Repeat("e", 90)
	older := reg("old", "x")
	older.ModTime = time.Unix(-86400, 999)
	far := reg("uid", "")
	far.UID, far.GID = 1<<31, 1<<30
	attr := reg("xattr", "data")
	attr.Xattrs = map[string][]byte{"user.b": {0, 1, 0xff}, "user.a": {}, "user.overlay.opaque": []byte("y"), "security.selinux": []byte("x"), sys.CapabilityAttr: []byte("cap")}
	data, _ := tarOf(t, sorted(
		dir("."), dir("a"), reg("a/file", "hello"), symlink("a/link", "file"), hardlink("a/two", "a/file"), whiteoutOf("gone"),
		far, older, reg("ünï", "é"), attr, reg(long+"/"+strings.Repeat("f", 100), "deep"), reg(strings.Repeat("g", 101), ""),
		symlink("z", strings.Repeat("t", 200)),
	))
	tr := tar.NewReader(bytes.NewReader(data))
	var got []string
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(tr)
		var attrs []string
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, paxXattr) {
				attrs = append(attrs, fmt.Sprintf("%s=%x", k, v))
			}
		}
		slices.Sort(attrs)
		got = append(got, fmt.Sprintf("%c %s %o %d:%d %d %q %s%v", h.Typeflag, shorten(h.Name), h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), body, strings.TrimLeft(shorten(h.Linkname)+" ", " "), attrs))
		if h.Uname != "" || h.Gname != "" {
			t.Errorf("%s has names of owners", h.Name)
		}
	}
	own := fmt.Sprintf("%d:%d 1700000000", mine.UID, mine.GID)
	want := []string{
		`5 a/ 755 ` + own + ` "" []`,
		`0 a/file 644 ` + own + ` "hello" []`,
		`2 a/link 777 ` + own + ` "" file []`,
		`1 a/two 644 ` + own + ` "" a/file []`,
		`5 d(91) 755 0:0 0 "" []`,
		`5 d(182) 755 0:0 0 "" []`,
		`0 d(282) 644 ` + own + ` "deep" []`,
		`0 g(101) 644 ` + own + ` "" []`,
		`0 .wh.gone 0 0:0 0 "" []`,
		`0 old 644 ` + fmt.Sprintf("%d:%d", mine.UID, mine.GID) + ` -86400 "x" []`,
		`0 uid 644 2147483648:1073741824 1700000000 "" []`,
		`0 xattr 644 ` + own + ` "data" [SCHILY.xattr.security.capability=636170 SCHILY.xattr.user.a= SCHILY.xattr.user.b=0001ff]`,
		`2 z 777 ` + own + ` "" t(200) []`,
		`0 ünï 644 ` + own + ` "é" []`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func shorten(s string) string {
	if len(s) > 20 {
		return fmt.Sprintf("%s(%d)", s[:1], len(s))
	}
	return s
}

func TestUnsortedFilesAreRefused(t *testing.T) {
	for _, files := range [][]File{
		{reg("b", ""), reg("a", "")},
		{reg("a", ""), reg("a", "")},
		{reg("a", ""), reg("a/b", "")},
		{reg("b", ""), hardlink("c", "d")},
		{reg(".wh.a", "")},
		{reg("../a", "")},
		{whiteoutOf("a"), reg("a/b", "")},
		{entry("null", unix.S_IFCHR|0o666)},
		{whiteoutOf(".")},
	} {
		if _, err := WriteTar(context.Background(), io.Discard, all(files...)); err == nil {
			t.Errorf("%s, %s: no error", files[0].Path, files[len(files)-1].Path)
		}
	}
}

var ignoreOrder = cmpopts.EquateEmpty()

func TestTreeAndTarGiveEachOther(t *testing.T) {
	setuid := reg("b/setuid", "s")
	setuid.Mode = unix.S_IFREG | 0o4711
	sticky := dir("tmp")
	sticky.Mode = unix.S_IFDIR | 0o1777
	opaque := dir("opaque")
	opaque.Opaque = true
	attr := reg("xattr", "x")
	attr.Xattrs = map[string][]byte{"user.empty": {}, "user.bin": {0, '\n', '='}}
	fifo := entry("pipe", unix.S_IFIFO|0o640)
	files := []File{
		reg("a", strings.Repeat("long content ", 20000)), dir("b"), reg("b-first", "1"), setuid,
		dir("c"), dir("c/d"), reg("c/d/e", ""), hardlink("c/d/f", "a"), reg("c.txt", "2"), whiteoutOf("gone"), opaque, reg("opaque/new", ""), fifo,
		symlink("sym", "../../etc/passwd"), sticky, attr, reg("ü", "utf"),
	}
	data, want := tarOf(t, sorted(files...))

	eachForm(t, func(t *testing.T, f form) {
		tree := f.new(t)
		got, err := Unpack(context.Background(), bytes.NewReader(data), tree, f.with(UnpackOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("Unpack read another tar than WriteTar wrote (-wrote +read):\n%s", d)
		}
		again, _ := tarOf(t, WalkUpper(tree))
		if !bytes.Equal(data, again) {
			t.Errorf("the tar of the tree differs:\n%s", cmp.Diff(names(t, data), names(t, again)))
		}
		built := f.new(t)
		b, err := Build(context.Background(), built, all(files...), f.with(UnpackOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, b); d != "" {
			t.Errorf("Build and WriteTar differ (-WriteTar +Build):\n%s", d)
		}
		if d := cmp.Diff(list(t, WalkUpper(tree)), list(t, WalkUpper(built)), ignoreOrder); d != "" {
			t.Errorf("Build and Unpack made different trees (-Unpack +Build):\n%s", d)
		}
		for _, to := range forms() {
			copied := to.new(t)
			// The root of an image that no entry names is root's.
			if err := Create(context.Background(), copied, WalkUpper(tree), to.with(UnpackOptions{Owner: &mine})); err != nil {
				t.Fatal(err)
			}
			if again, _ := tarOf(t, WalkUpper(copied)); !bytes.Equal(data, again) {
				t.Errorf("the tar of a copy made with Create as %s differs", to)
			}
		}
	})
}

func names(t testing.TB, data []byte) []string {
	t.Helper()
	var out []string
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if err != nil {
			return out
		}
		out = append(out, fmt.Sprintf("%c %s %o %d:%d %d %d %s %q", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.Unix(), h.Linkname, h.PAXRecords))
	}
}

func TestMissingParentsAreTheSameInTarAndTree(t *testing.T) {
	needRoot(t)
	data, _ := tarOf(t, all(reg("a/b/c", "x"), reg("a/d", "y"), reg("e/f", "z")))
	want := []string{"a/", "a/b/", "a/b/c", "a/d", "e/", "e/f"}
	var got []string
	for _, n := range names(t, data) {
		got = append(got, strings.Fields(n)[1])
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// A foreign tar without parents unpacks to the same.
	var foreign bytes.Buffer
	tw := tar.NewWriter(&foreign)
	for _, name := range []string{"e/f", "a/d", "a/b/c"} {
		body := map[string]string{"a/b/c": "x", "a/d": "y", "e/f": "z"}[name]
		_ = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 1, ModTime: time.Unix(1700000000, 0), Uid: int(mine.UID), Gid: int(mine.GID)})
		_, _ = tw.Write([]byte(body))
	}
	_ = tw.Close()
	for _, f := range forms() {
		tree := f.new(t)
		if _, err := Unpack(context.Background(), bytes.NewReader(foreign.Bytes()), tree, f.with(UnpackOptions{})); err != nil {
			t.Fatal(err)
		}
		if again, _ := tarOf(t, WalkUpper(tree)); !bytes.Equal(data, again) {
			t.Errorf("%s: tars differ:\n%s", f, cmp.Diff(names(t, data), names(t, again)))
		}
	}
}

func TestFileThatChangesIsAnError(t *testing.T) {
	for _, size := range []int64{4, 6, smallFile + 5} {
		f := reg("f", "12345")
		f.Size = size
		if _, err := WriteTar(context.Background(), io.Discard, all(f)); err == nil || !strings.Contains(err.Error(), "changed") {
			t.Errorf("5 bytes for %d: %v", size, err)
		}
	}
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "f"), make([]byte, 100000), 0o644); err != nil {
		t.Fatal(err)
	}
	for f, err := range WalkUpper(tree) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Path == "." {
			continue
		}
		for _, change := range []func(string) error{
			func(p string) error { return os.Truncate(p, 99999) },
			func(p string) error { return os.Truncate(p, 100001) },
			os.Remove,
		} {
			if err := change(filepath.Join(tree, "f")); err != nil {
				t.Fatal(err)
			}
			if _, err := Build(context.Background(), t.TempDir(), all(f), UnpackOptions{}); err == nil {
				t.Error("no error for a file that changed")
			}
		}
	}
}

func TestStackOfDeltasWalksAsOneLayer(t *testing.T) {
	opaque := dir("op")
	opaque.Opaque = true
	bottom := []File{dir("a"), reg("a/1", "old"), reg("a/2", "two"), reg("b", "file"), dir("c"), reg("c/x", ""), dir("op"), reg("op/x", ""), reg("z", "")}
	middle := []File{dir("a"), reg("a/1", "new"), whiteoutOf("c"), dir("b"), reg("b/in", "")}
	top := []File{dir("a"), whiteoutOf("a/2"), dir("b"), reg("b/top", ""), dir("c"), reg("c/y", ""), opaque, reg("op/y", "")}
	const want = "a dir, a/1 3, a/2 removed, b dir opaque, b/in 0, b/top 0, c dir opaque, c/y 0, op dir opaque, op/y 0, z 0"
	for mix := range 8 { // of both forms
		var stack []string
		for i, files := range [][]File{top, middle, bottom} {
			f := form{image: mix>>i&1 == 1}
			tree := f.new(t)
			if _, err := Build(context.Background(), tree, sorted(files...), f.with(UnpackOptions{})); err != nil {
				t.Fatal(err)
			}
			stack = append(stack, tree)
		}
		if got := summary(list(t, WalkStack(stack))); got != want {
			t.Errorf("mix %03b: got  %s\nwant %s", mix, got, want)
		}
	}
}

func TestWhiteoutsThatHideNothingAreDropped(t *testing.T) {
	opaque := dir("a")
	opaque.Opaque = true
	data, _ := tarOf(t, all(opaque, dir("a/b"), whiteoutOf("a/b/c"), whiteoutOf("a/d"), dir("e"), whiteoutOf("e/f")))
	var got []string
	for _, n := range names(t, data) {
		got = append(got, strings.Fields(n)[1])
	}
	if d := cmp.Diff([]string{"a/", "a/.wh..wh..opq", "a/b/", "e/", "e/.wh.f"}, got); d != "" {
		t.Error(d)
	}
}

func TestDevicesAreKeptInUserNamespaces(t *testing.T) {
	null := entry("dev/null", unix.S_IFCHR|0o666)
	null.Rdev = unix.Mkdev(1, 3)
	disk := entry("dev/sda", unix.S_IFBLK|0o660)
	disk.Rdev = unix.Mkdev(8, 0)
	data, _ := tarOf(t, all(dir("dev"), null, disk))
	tree := t.TempDir()
	a, err := Unpack(context.Background(), bytes.NewReader(data), tree, UnpackOptions{InUserns: true})
	if err != nil {
		t.Fatal(err)
	}
	if a.Devices != 2 {
		t.Errorf("%d devices were recorded, want 2", a.Devices)
	}
	if fi, err := os.Lstat(filepath.Join(tree, "dev/null")); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("the stand-in is %v, %v", fi.Mode(), err)
	}
	if again, _ := tarOf(t, WalkUpper(tree)); !bytes.Equal(data, again) {
		t.Errorf("the tar lost the devices:\n%s", cmp.Diff(names(t, data), names(t, again)))
	}
	needRoot(t)
	tree, _ = unpackTo(t, data)
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(tree, "dev/sda"), &st); err != nil || st.Rdev != disk.Rdev {
		t.Errorf("device is %d, want %d: %v", st.Rdev, disk.Rdev, err)
	}
	if again, _ := tarOf(t, WalkUpper(tree)); !bytes.Equal(data, again) {
		t.Error("the tar of real device nodes differs")
	}
}

// TestUsersOfAContainerPlantNoDevices sets what a step's user can set on files that it owns, or
// that anybody may write to.
func TestUsersOfAContainerPlantNoDevices(t *testing.T) {
	upper := t.TempDir()
	disk := sys.Inode{Mode: unix.S_IFBLK | 0o666, UID: 1000, Rdev: unix.Mkdev(8, 0)}
	for name, mode := range map[string]os.FileMode{"written": 0o666, "group": 0o660, "text": 0o600, "users": 0o600, "full": 0o600} {
		p := filepath.Join(upper, name)
		content := ""
		if name == "full" {
			content = "x"
		}
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		value := disk.Format()
		if name == "text" {
			value = []byte("b 8:0")
		}
		if err := unix.Setxattr(p, sys.DeviceAttr, value, 0); err != nil {
			t.Skipf("needs user attributes in the temporary directory: %v", err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(upper, "users"), 1000, 1000); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Remove(filepath.Join(upper, "users")); err != nil {
		t.Fatal(err)
	}
	for f, err := range WalkUpper(upper) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Path != "." && f.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("%s is %#o, device %d", f.Path, f.Mode, f.Rdev)
		}
		if f.UID == 1000 && f.Path != "users" && os.Geteuid() != 1000 {
			t.Errorf("%s is another's", f.Path)
		}
	}
}

func TestComparePathsIsTheOrderOfAWalk(t *testing.T) {
	paths := []string{".", "a", "a/b", "a/b/c", "a/b.d", "a b", "a-b", "a-b/c", "a.b", "b"}
	for i, a := range paths {
		for j, b := range paths {
			if got := ComparePaths(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("ComparePaths(%q, %q) = %d", a, b, got)
			}
		}
	}
}

func TestOverlayBookkeepingStaysOutOfTars(t *testing.T) {
	tree := t.TempDir()
	for _, attr := range []string{"user.overlay.origin", "user.overlay.impure", "user.den.device", "user.kept"} {
		if err := unix.Setxattr(tree, attr, []byte("y"), 0); err != nil {
			t.Skipf("needs user attributes in the temporary directory: %v", err)
		}
	}
	if err := os.Mkdir(filepath.Join(tree, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(tree, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := sys.SetXattrAt(fd, "d", "user.overlay.origin", []byte("y")); err != nil {
		t.Fatal(err)
	}
	for _, e := range list(t, WalkUpper(tree)) {
		if len(e.Xattrs) != 0 {
			t.Errorf("%s carries %v", e.Path, e.Xattrs)
		}
	}
}
