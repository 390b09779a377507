package lower

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/erofs"
	"den/internal/oci"
	"den/internal/sys"
)

// both makes the same small tree as a directory and as an image.
func both(t *testing.T) map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fs")
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/file"), []byte("content"), 0o640))
	must(t, os.Chmod(filepath.Join(dir, "a/file"), 0o640))
	must(t, os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "a/second")))
	must(t, os.Symlink("a/file", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, unix.Setxattr(filepath.Join(dir, "a/b"), sys.OpaqueAttr, []byte("y"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a/file"), "user.x", []byte("y"), 0))
	must(t, os.Chtimes(filepath.Join(dir, "a/file"), time.Time{}, time.Unix(1700000000, 42)))

	w, err := erofs.Create(filepath.Join(t.TempDir(), "image.erofs"), erofs.Options{})
	must(t, err)
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	for _, e := range []oci.Entry{
		{Path: "a/b", Mode: unix.S_IFDIR | 0o755, UID: uid, GID: gid, Opaque: true},
		{Path: "a/file", Mode: unix.S_IFREG | 0o640, UID: uid, GID: gid, Size: 7, ModTime: time.Unix(1700000000, 42), Xattrs: map[string][]byte{"user.x": []byte("y")}},
		{Path: "a/second", Hardlink: true, Link: "a/file"},
		{Path: "link", Mode: unix.S_IFLNK, Link: "a/file"},
		{Path: "pipe", Mode: unix.S_IFIFO | 0o600},
	} {
		at, err := w.Add(&e)
		must(t, err)
		if e.Size > 0 {
			_, err := unix.Pwrite(w.Fd(), []byte("content"), at)
			must(t, err)
		}
	}
	must(t, w.Close())
	return map[string]string{"directory": dir, "image": w.Path()}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBothFormsSayTheSame(t *testing.T) {
	for form, path := range both(t) {
		t.Run(form, func(t *testing.T) {
			if is, err := IsImage(path); err != nil || is != (form == "image") {
				t.Errorf("IsImage is %v, %v", is, err)
			}
			root, err := Open(path)
			must(t, err)
			names, err := root.Names()
			must(t, err)
			slices.Sort(names)
			if want := []string{"a", "link", "pipe"}; !slices.Equal(names, want) {
				t.Errorf("names %v, want %v", names, want)
			}
			if target, err := root.Readlink("link"); err != nil || target != "a/file" {
				t.Errorf("link to %q, %v", target, err)
			}
			checkFile(t, root)
			checkErrors(t, root)
			root.Close()
		})
	}
}

func checkFile(t *testing.T, root Dir) {
	t.Helper()
	a, err := root.OpenDir("a")
	must(t, err)
	defer a.Close()
	var file, second unix.Stat_t
	must(t, a.Stat("file", &file))
	must(t, a.Stat("second", &second))
	if file.Ino != second.Ino || file.Dev != second.Dev || file.Nlink != 2 {
		t.Errorf("file %+v and second %+v are not one", file, second)
	}
	if file.Mode != unix.S_IFREG|0o640 || file.Size != 7 || file.Mtim.Sec != 1700000000 || file.Mtim.Nsec != 42 || file.Uid != uint32(os.Geteuid()) {
		t.Errorf("file is %+v", file)
	}
	if attrs, err := a.Attrs("second"); err != nil || string(attrs.Keep["user.x"]) != "y" {
		t.Errorf("attributes %v, %v", attrs, err)
	}
	b, err := root.OpenBeneath("a/b")
	must(t, err)
	if opaque, err := b.Opaque(); err != nil || !opaque {
		t.Errorf("a/b is opaque: %v, %v", opaque, err)
	}
	b.Close()
	if opaque, err := a.Opaque(); err != nil || opaque {
		t.Errorf("a is opaque: %v, %v", opaque, err)
	}
}

func checkErrors(t *testing.T, root Dir) {
	t.Helper()
	var st unix.Stat_t
	_, dirErr := root.OpenDir("none")
	_, fileErr := root.Open("none")
	_, linkErr := root.Readlink("none")
	for _, err := range []error{dirErr, fileErr, linkErr, root.Stat("none", &st)} {
		if err != unix.ENOENT {
			t.Errorf("missing: %v", err)
		}
	}
	if _, err := root.OpenDir("pipe"); err != unix.ENOTDIR {
		t.Errorf("a pipe as directory: %v", err)
	}
	if _, err := root.OpenDir("link"); err != unix.ENOTDIR && err != unix.ELOOP {
		t.Errorf("a link as directory: %v", err)
	}
	if _, err := root.OpenBeneath("a/file/x"); err != unix.ENOTDIR {
		t.Errorf("a file on the way: %v", err)
	}
	if _, err := root.Open("link"); err != unix.ELOOP {
		t.Errorf("open a link: %v", err)
	}
}

func TestContentOutlivesItsImage(t *testing.T) {
	root, err := Open(both(t)["image"])
	must(t, err)
	a, err := root.OpenDir("a")
	must(t, err)
	f, err := a.Open("file")
	must(t, err)
	a.Close()
	root.Close()
	data, err := io.ReadAll(f.Content)
	if err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	must(t, f.Content.Close())
	if err := f.Content.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := f.Content.(io.ReaderAt).ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after everything is closed: %v", err)
	}
}

func TestWhatIsNeitherIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("no image"), 0o600))
	if _, err := Open(path); !errors.Is(err, erofs.ErrBroken) {
		t.Errorf("%v", err)
	}
	if _, err := Open(path + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A directory with many directories is read once, and not for each of them.
func TestManyDirectoriesAreOpenedByPath(t *testing.T) {
	w, err := erofs.Create(filepath.Join(t.TempDir(), "image.erofs"), erofs.Options{})
	must(t, err)
	const many = 20_000
	for i := range many {
		_, err := w.Add(&oci.Entry{Path: fmt.Sprintf("a/b/%05d/in", i), Mode: unix.S_IFDIR | 0o755})
		must(t, err)
	}
	must(t, w.Close())
	root, err := Open(w.Path())
	must(t, err)
	defer root.Close()
	for i := range many {
		d, err := root.OpenBeneath(fmt.Sprintf("a/b/%05d", i))
		must(t, err)
		if names, err := d.Names(); err != nil || len(names) != 1 {
			t.Fatalf("%v, %v", names, err)
		}
		d.Close()
	}
	if _, err := root.OpenBeneath("a/c/x"); err != unix.ENOENT {
		t.Errorf("missing: %v", err)
	}
	for _, path := range []string{"", ".", "a"} {
		d, err := root.OpenBeneath(path)
		must(t, err)
		d.Close()
	}
}
