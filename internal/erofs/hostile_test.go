package erofs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// readAll reads everything in an image and returns the first error. Whatever
// the bytes are, it ends: directories are a tree.
func readAll(t testing.TB, path string) error {
	r, err := Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	root, err := r.OpenRoot()
	if err != nil {
		return err
	}
	left := int(r.maxNames())
	var walk func(*Dir) error
	walk = func(d *Dir) error {
		for _, name := range d.Names() {
			if left--; left < 0 {
				t.Fatalf("more names than %d bytes can hold", r.size)
			}
			n, err := d.Lookup(name)
			if err != nil {
				return err
			}
			if _, err := r.Attrs(n); err != nil {
				return err
			}
			switch n.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				sub, err := d.Dir(name)
				if err == nil {
					err = walk(sub)
				}
				if err != nil {
					return err
				}
			case unix.S_IFLNK:
				if _, err := r.Readlink(n); err != nil {
					return err
				}
			case unix.S_IFREG:
				c, err := r.Content(n)
				if err != nil {
					return err
				}
				if _, err := io.CopyN(io.Discard, c, min(n.Size, 64)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk(root)
}

// small is an image with little content and everything else.
func small(t testing.TB) string {
	return write(t, Options{}, dir("a"), dir("a/b"), reg("a/b/f", "f"), hardlink("a/g", "a/b/f"), symlink("l", "a"), dir("z"),
		attributed(reg("x", "x"), "user.x", "y"), device("dev", unix.S_IFBLK, 1, 2), gone("w"))
}

func TestBrokenImagesAreErrors(t *testing.T) {
	image := small(t)
	good, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := readAll(t, image); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(image, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	refused := 0
	for i, b := range good {
		if b == 0 && i%97 != 0 { // most of it is zeros
			continue
		}
		bad := b ^ []byte{0xff, 0x01, 0x80}[i%3]
		if _, err := f.WriteAt([]byte{bad}, int64(i)); err != nil {
			t.Fatal(err)
		}
		if err := readAll(t, image); err != nil {
			refused++
			if !errors.Is(err, ErrBroken) {
				t.Errorf("byte %d: %v is not ErrBroken", i, err)
			}
		}
		if _, err := f.WriteAt([]byte{b}, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if refused < 50 {
		t.Errorf("only %d broken images were refused", refused)
	}
}

func TestTornImagesAreErrors(t *testing.T) {
	image := small(t)
	good, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "i")
	for size := 0; size < len(good); size += 512 {
		if err := os.WriteFile(path, good[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readAll(t, path); !errors.Is(err, ErrBroken) {
			t.Errorf("the first %d bytes: %v", size, err)
		}
	}
	// Blocks that never reached the disk.
	for at := 0; at < len(good); at += blockSize {
		torn := append([]byte{}, good...)
		empty := string(torn[at:at+8]) == "\x00\x00\x00\x00\x00\x00\x00\x00"
		clear(torn[at : at+blockSize])
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		meta := at == 0 || at >= len(good)-5*blockSize && !empty
		if err := readAll(t, path); meta && !errors.Is(err, ErrBroken) {
			t.Errorf("without the block at %d: %v", at, err)
		}
	}
}

func TestDirectoriesCannotFormACycle(t *testing.T) {
	// The second name of a directory, below itself and beside itself.
	for name, cheat := range map[string]func(w *Writer, a *node){
		"below itself":  func(_ *Writer, a *node) { a.dir.put("again", a) },
		"beside itself": func(w *Writer, a *node) { w.root.dir.put("again", a) },
		"the root":      func(w *Writer, a *node) { a.dir.put("again", w.root) },
	} {
		t.Run(name, func(t *testing.T) {
			w, err := Create(filepath.Join(t.TempDir(), "i"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := add(w, dir("a/b")); err != nil {
				t.Fatal(err)
			}
			a := w.root.dir.kids["a"]
			l := layout{meta: w.end}
			if err := l.place(w.root); err != nil {
				t.Fatal(err)
			}
			cheat(w, a)
			for _, d := range []*node{w.root, a} { // list the cheat where there was room
				d.dir.names = nil
				for n := range d.dir.kids {
					d.dir.names = append(d.dir.names, n)
				}
				d.size = dirBytes(d.dir.entries())
			}
			if err := errors.Join(l.write(w.f), l.super(w.f), w.f.Close()); err != nil {
				t.Fatal(err)
			}
			if err := readAll(t, w.Path()); !errors.Is(err, ErrBroken) {
				t.Errorf("error %v, want a broken image", err)
			}
		})
	}
}

func TestBrokenSidecarIsAnError(t *testing.T) {
	image := small(t)
	for name, data := range map[string]string{"no tar": "no tar of any kind" + string(make([]byte, 1024)), "empty": ""} {
		if err := os.Chmod(image+AttrsSuffix, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(image+AttrsSuffix, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readAll(t, image); (err == nil) != (data == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzReader changes bytes of a good image and of its attributes: each three
// are a place and a value. Whole images would be too long to vary.
func FuzzReader(f *testing.F) {
	source := small(f)
	image, err := os.ReadFile(source)
	if err != nil {
		f.Fatal(err)
	}
	attrs, err := os.ReadFile(source + AttrsSuffix)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0, 4, 0xff}, []byte{156, 0, '2'})
	f.Add([]byte{0, 0x30, 3, 8, 0x30, 1, 16, 0x30, 1}, []byte{0, 2, 'x'})
	path := filepath.Join(f.TempDir(), "i")
	f.Fuzz(func(t *testing.T, inImage, inAttrs []byte) {
		for _, part := range []struct {
			path        string
			good, edits []byte
		}{{path, image, inImage}, {path + AttrsSuffix, attrs, inAttrs}} {
			bad := append([]byte{}, part.good...)
			for e := part.edits; len(e) >= 3; e = e[3:] {
				bad[(int(e[0])|int(e[1])<<8)%len(bad)] = e[2]
			}
			if err := os.WriteFile(part.path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := readAll(t, path); err != nil && !errors.Is(err, ErrBroken) {
			t.Errorf("%v is not ErrBroken", err)
		}
	})
}
