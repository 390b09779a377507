package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sys"
)

// make1 makes a tree from a list of "path", "path=content", "path/", "path/!"
// (opaque), "path->target" and "path-" (whiteout).
func make1(t testing.TB, specs ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, spec := range specs {
		if err := put(root, spec); err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
	}
	return root
}

func put(root, spec string) error {
	if path, target, ok := strings.Cut(spec, "->"); ok {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755)
		return os.Symlink(target, filepath.Join(root, path))
	}
	if path, ok := strings.CutSuffix(spec, "/!"); ok {
		if err := os.MkdirAll(filepath.Join(root, path), 0o755); err != nil {
			return err
		}
		return unix.Setxattr(filepath.Join(root, path), sys.OpaqueAttr, []byte("y"), 0)
	}
	if path, ok := strings.CutSuffix(spec, "/"); ok {
		return os.MkdirAll(filepath.Join(root, path), 0o755)
	}
	if path, ok := strings.CutSuffix(spec, "-"); ok {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755)
		return unix.Mknod(filepath.Join(root, path), unix.S_IFCHR, 0)
	}
	path, content, _ := strings.Cut(spec, "=")
	_ = os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755)
	return os.WriteFile(filepath.Join(root, path), []byte(content), 0o644)
}

// show lists a view, with the contents of files.
func show(t testing.TB, v FS) []string {
	t.Helper()
	var out []string
	err := Walk(v, "/", func(e *oci.Entry) error {
		s := e.Path
		switch {
		case e.Hardlink:
			s += " = " + e.Link
		case e.Mode&unix.S_IFMT == unix.S_IFDIR:
			s += "/"
		case e.Mode&unix.S_IFMT == unix.S_IFLNK:
			s += " -> " + e.Link
		case e.Mode&unix.S_IFMT == unix.S_IFREG:
			f, err := v.Open(e.Path)
			if err != nil {
				return err
			}
			defer f.Close()
			data, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			s += " = " + string(data)
		}
		out = append(out, strings.TrimSuffix(s, " = "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func stackOf(t testing.TB, dirs ...string) FS {
	t.Helper()
	v, err := Stack(dirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// stacksOf are the views of a stack whose trees are directories, images, and
// now one and now the other.
func stacksOf(t testing.TB, dirs ...string) []FS {
	t.Helper()
	views := []FS{stackOf(t, dirs...)}
	for _, every := range []int{1, 2} {
		mixed := append([]string{}, dirs...)
		for i := 0; i < len(dirs); i += every {
			mixed[i] = imageOf(t, dirs[i])
		}
		views = append(views, stackOf(t, mixed...))
	}
	return views
}

func imageOf(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := layer.Create(t.Context(), path, layer.WalkUpper(dir), layer.UnpackOptions{Image: true}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStackMergesLikeAnOverlay(t *testing.T) {
	bottom := make1(t, "a/1=old", "a/2=two", "b=file", "c/x", "op/x", "z=last", "deep/er/f=1")
	middle := make1(t, "a/1=new", "c-", "b/in", "deep/er/g=2")
	top := make1(t, "a/2-", "b/top", "c/y", "op/!", "op/y", "z->a", "deep/er/")
	want := []string{
		"./", "a/", "a/1 = new", "b/", "b/in", "b/top", "c/", "c/y", "deep/", "deep/er/", "deep/er/f = 1", "deep/er/g = 2",
		"op/", "op/y", "z -> a",
	}
	for _, v := range stacksOf(t, top, middle, bottom) {
		checkMerge(t, v, want)
	}
}

func checkMerge(t *testing.T, v FS, want []string) {
	t.Helper()
	if d := cmp.Diff(want, show(t, v)); d != "" {
		t.Error(d)
	}
	for _, path := range []string{"a/2", "c/x", "op/x", "nothing", "b/in/x", "z/1", "a/1/x", "deep/er/h/i/j"} {
		if _, err := v.Lstat(path); !errdefs.IsNotFound(err) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("lstat %s: %v", path, err)
		}
		if _, err := v.Open(path); !errdefs.IsNotFound(err) {
			t.Errorf("open %s: %v", path, err)
		}
		if _, err := v.ReadDir(path); !errdefs.IsNotFound(err) {
			t.Errorf("list %s: %v", path, err)
		}
	}
	if _, err := v.Open("a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("open a directory: %v", err)
	}
	if _, err := v.Readlink("a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("readlink of a directory: %v", err)
	}
	if got, err := v.Readlink("/z"); got != "a" || err != nil {
		t.Errorf("readlink: %q, %v", got, err)
	}
}

func TestOpaqueRootHidesEverythingBelow(t *testing.T) {
	bottom, top := make1(t, "a", "b/c"), make1(t, "b/d")
	if err := unix.Setxattr(top, sys.OpaqueAttr, []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	for _, v := range stacksOf(t, top, bottom) {
		if d := cmp.Diff([]string{"./", "b/", "b/d"}, show(t, v)); d != "" {
			t.Error(d)
		}
	}
}

func TestEmptyStackIsAnEmptyDirectory(t *testing.T) {
	if d := cmp.Diff([]string{"./"}, show(t, stackOf(t))); d != "" {
		t.Error(d)
	}
}

func TestResolveStaysInside(t *testing.T) {
	bottom := make1(t, "etc/passwd=x", "usr/lib/x", "lib->usr/lib", "abs->/etc", "up->../../../etc", "loop1->loop2", "loop2->loop1", "self->.",
		"usr/lib/back->../../abs", "dangling->/no/where", "file=1")
	top := make1(t, "late->lib", "usr/lib/y")
	for _, v := range append(stacksOf(t, top, bottom), mustDir(t, bottom)) {
		for path, want := range map[string]string{
			"":                    ".",
			"/":                   ".",
			"../..":               ".",
			"lib/x":               "usr/lib/x",
			"abs/passwd":          "etc/passwd",
			"up/passwd":           "etc/passwd",
			"self/self/self/lib/": "usr/lib",
			"lib/back/passwd":     "etc/passwd",
			"lib/../x":            "usr/x",
			"dangling/x":          "no/where/x",
			"new/../lib/x":        "usr/lib/x",
			"new/dir/file":        "new/dir/file",
			"file/x":              "file/x",
			"./a//b/.":            "a/b",
			"up/../../../../abs":  "etc",
		} {
			if got, err := Resolve(v, path); got != want || err != nil {
				t.Errorf("%T: Resolve(%q) = %q, %v, want %q", v, path, got, err, want)
			}
		}
		for path, want := range map[string]string{"lib": "lib", "/lib/": "lib", "abs/lib": "etc/lib", "lib/back": "usr/lib/back", "lib/..": "usr", "": ".", "lib/back/x": "etc/x"} {
			if got, err := ResolveParent(v, path); got != want || err != nil {
				t.Errorf("%T: ResolveParent(%q) = %q, %v, want %q", v, path, got, err, want)
			}
		}
		if _, err := Resolve(v, "loop1/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a loop: %v", err)
		}
	}
	if got, err := Resolve(stackOf(t, top, bottom), "late/x"); got != "usr/lib/x" || err != nil {
		t.Errorf("across layers: %q, %v", got, err)
	}
}

func mustDir(t testing.TB, root string) FS {
	t.Helper()
	v, err := Dir(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func TestLinksAreNotFollowed(t *testing.T) {
	outer := make1(t, "secret/file=s", "root/in=1", "root/out->../secret", "root/outfile->../secret/file", "root/abs->/etc")
	if err := unix.Mkfifo(filepath.Join(outer, "root/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(outer, "root")
	for _, v := range append(stacksOf(t, make1(t), root), mustDir(t, root), stackOf(t, root)) {
		for _, path := range []string{"out/file", "abs/passwd", "../secret/file", "in/../../secret/file"} {
			if _, err := v.Lstat(path); !errdefs.IsNotFound(err) {
				t.Errorf("%T: lstat %s: %v", v, path, err)
			}
			if f, err := v.Open(path); err == nil {
				_ = f.Close()
				t.Errorf("%T: open %s works", v, path)
			}
			if _, err := v.ReadDir(path); err == nil {
				t.Errorf("%T: list %s works", v, path)
			}
		}
		for _, path := range []string{"outfile", "out", "pipe", "."} {
			if _, err := v.Open(path); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%T: open %s: %v", v, path, err)
			}
		}
		if _, err := v.ReadDir("out"); !errdefs.IsNotFound(err) {
			t.Errorf("%T: list a link: %v", v, err)
		}
	}
}

func TestWalkFindsHardLinksAndSkips(t *testing.T) {
	root := make1(t, "a/x=1", "b/", "c/d/e", "c/f")
	if err := os.Link(filepath.Join(root, "a/x"), filepath.Join(root, "b/y")); err != nil {
		t.Fatal(err)
	}
	for _, v := range append(stacksOf(t, root), mustDir(t, root)) {
		want := []string{"./", "a/", "a/x = 1", "b/", "b/y = a/x", "c/", "c/d/", "c/d/e", "c/f"}
		if d := cmp.Diff(want, show(t, v)); d != "" {
			t.Error(d)
		}
		var got []string
		err := Walk(v, ".", func(e *oci.Entry) error {
			got = append(got, e.Path)
			switch e.Path {
			case "c/d":
				return fs.SkipDir
			case "a":
				return fs.SkipDir
			case "c/f":
				return fs.SkipAll
			}
			return nil
		})
		if d := cmp.Diff([]string{".", "a", "b", "b/y", "c", "c/d", "c/f"}, got); d != "" || err != nil {
			t.Error(d, err)
		}
	}
	boom := errors.New("boom")
	if err := Walk(mustDir(t, root), "a", func(*oci.Entry) error { return boom }); err != boom {
		t.Error(err)
	}
}

func TestRecordedDevicesAreDevices(t *testing.T) {
	root := make1(t, "null", "plain=1", "open")
	for _, name := range []string{"null", "plain", "open"} {
		record := sys.Inode{Mode: unix.S_IFCHR | 0o666, GID: 5, Rdev: unix.Mkdev(1, 3)}
		if err := unix.Setxattr(filepath.Join(root, name), sys.DeviceAttr, record.Format(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "open"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, v := range stacksOf(t, root) {
		if e, err := v.Lstat("null"); err != nil || e.Mode != unix.S_IFCHR|0o666 || e.GID != 5 || e.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("%+v, %v", e, err)
		}
		if _, err := v.Open("null"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("open: %v", err)
		}
		if e, err := v.Lstat("open"); err != nil || e.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("a file that anybody may write to is %+v, %v", e, err)
		}
		if e, err := v.Lstat("plain"); err != nil || e.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("a file with content is %+v, %v", e, err)
		}
	}
}

// TestStackShowsWhatTheKernelShows mounts random stacks and compares.
func TestStackShowsWhatTheKernelShows(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts an overlay")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c"}
	var grow func(root, dir string, depth int)
	grow = func(root, dir string, depth int) {
		for _, name := range names {
			p := filepath.Join(dir, name)
			switch n := rnd.IntN(9); {
			case n < 2 && depth < 3:
				_ = put(root, p+"/")
				grow(root, p, depth+1)
			case n == 2 && depth < 3:
				_ = put(root, p+"/!")
				grow(root, p, depth+1)
			case n == 3:
				_ = put(root, p+"-")
			case n == 4:
				_ = put(root, fmt.Sprintf("%s=%d", p, rnd.IntN(100)))
			case n == 5:
				_ = put(root, p+"->b")
			}
		}
	}
	mounted := false
	for range 40 {
		var dirs []string
		for range 1 + rnd.IntN(5) {
			root := t.TempDir()
			grow(root, "", 0)
			dirs = append(dirs, root)
		}
		target := t.TempDir()
		lower := strings.Join(append(append([]string{}, dirs...), t.TempDir()), ":")
		if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "userxattr,lowerdir="+lower); err != nil {
			if !mounted {
				t.Skipf("needs overlay mounts: %v", err)
			}
			t.Fatal(err)
		}
		mounted = true
		want := show(t, mustDir(t, target))
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		for _, v := range stacksOf(t, dirs...) {
			if d := cmp.Diff(want, show(t, v)); d != "" {
				t.Fatalf("the kernel and the stack differ (-kernel +stack):\n%s", d)
			}
		}
	}
}

func BenchmarkMissIn500Layers(b *testing.B) {
	var dirs []string
	for i := range 500 {
		dirs = append(dirs, make1(b, fmt.Sprintf("usr/lib/pkg%d/file", i), "etc/conf=1"))
	}
	v := stackOf(b, dirs...)
	for b.Loop() {
		if _, err := v.Lstat("usr/lib/python3/dist-packages/x.py"); !errdefs.IsNotFound(err) {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenStackOf500AndMiss(b *testing.B) {
	var dirs []string
	for i := range 500 {
		dirs = append(dirs, make1(b, fmt.Sprintf("usr/lib/pkg%d/file", i)))
	}
	for b.Loop() {
		v, err := Stack(dirs)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := v.Lstat("usr/lib/python3/dist-packages/x.py"); !errdefs.IsNotFound(err) {
			b.Fatal(err)
		}
		_ = v.Close()
	}
}

func BenchmarkWalk10000(b *testing.B) {
	root := b.TempDir()
	for i := range 10000 {
		if err := put(root, fmt.Sprintf("d%d/f%d=x", i%100, i)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		v, err := Stack([]string{root})
		if err != nil {
			b.Fatal(err)
		}
		if err := Walk(v, "", func(*oci.Entry) error { return nil }); err != nil {
			b.Fatal(err)
		}
		_ = v.Close()
	}
}
