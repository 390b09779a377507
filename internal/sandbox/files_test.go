package sandbox_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sys"
)

// openRoot is dir as a root directory.
func openRoot(t testing.TB, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { f.Close() })
	return f
}

// FuzzWriteTar unpacks hostile archives: nothing appears outside of the root, and what was
// written can be read again.
func FuzzWriteTar(f *testing.F) {
	for _, hs := range [][]tar.Header{
		{{Name: "a/b", Typeflag: tar.TypeReg, Size: 1, Mode: 0o644}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../out"}, {Name: "l/x", Typeflag: tar.TypeReg, Size: 1}},
		{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: "d", Typeflag: tar.TypeFifo}},
		{{Name: "f", Typeflag: tar.TypeReg, Size: 1}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "f"}, {Name: "h", Typeflag: tar.TypeReg, Size: 1}},
		{{Name: "../x", Typeflag: tar.TypeReg, Size: 1}},
		{{Name: ".", Typeflag: tar.TypeFifo}},
		{{Name: "x", Typeflag: tar.TypeReg, Size: 1, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
			_, _ = w.Write([]byte("x")[:h.Size])
		}
		f.Add(b.Bytes(), false)
		f.Add(b.Bytes(), true)
	}
	if os.Geteuid() == 0 && sys.InInitialUserns() {
		f.Skip("needs a plain user: where this finds a way out of the root, the machine's files are what it finds")
	}
	f.Fuzz(func(t *testing.T, data []byte, keep bool) {
		top := t.TempDir()
		dir := filepath.Join(top, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		files := sandbox.NewFiles(openRoot(t, dir))
		_ = files.WriteTar(t.Context(), "/", bytes.NewReader(data), sandbox.WriteTarOptions{KeepKinds: keep, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
		if e, err := os.ReadDir(top); err != nil || len(e) != 1 {
			t.Errorf("beside the root are %v, %v", e, err)
		}
		if os.Geteuid() == 0 { // others may not read what the tar says
			if err := files.ReadTar(t.Context(), "/", ".", io.Discard); err != nil {
				t.Error(err)
			}
		}
	})
}

// The directory's own name is no place for anything but a directory: as an absolute path its base is "/",
// which means another root to the kernel.
func TestWriteTarLeavesTheDirectoryItself(t *testing.T) {
	for _, h := range []tar.Header{
		{Name: ".", Typeflag: tar.TypeReg, Size: 1}, {Name: "b/..", Typeflag: tar.TypeFifo},
		{Name: "a/..", Typeflag: tar.TypeSymlink, Linkname: "x"}, {Name: ".", Typeflag: tar.TypeLink, Linkname: "f"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("kept"), 0o644); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte("x")[:h.Size])
		err := sandbox.NewFiles(openRoot(t, dir)).WriteTar(t.Context(), "/", &b, sandbox.WriteTarOptions{})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q of type %c: %v", h.Name, h.Typeflag, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "kept" {
			t.Errorf("%q of type %c: the file beside is %q, %v", h.Name, h.Typeflag, got, err)
		}
	}
}

// TestFilesThatChangeKeepTheTarWhole cuts and grows a file between its header and its end.
func TestFilesThatChangeKeepTheTarWhole(t *testing.T) {
	for _, size := range []int64{0, 10, 1 << 20} {
		dir := t.TempDir()
		name := filepath.Join(dir, "f")
		if err := os.WriteFile(name, make([]byte, 100<<10), 0o644); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		w := &firstWrite{w: &out, do: func() { _ = os.Truncate(name, size) }}
		if err := sandbox.NewFiles(openRoot(t, dir)).ReadTar(t.Context(), "f", "f", w); err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(&out)
		h, err := r.Next()
		if err != nil || h.Size != 100<<10 {
			t.Fatalf("%+v, %v", h, err)
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("after the file: %v", err)
		}
	}
}

type firstWrite struct {
	w  io.Writer
	do func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if w.do != nil {
		w.do()
		w.do = nil
	}
	return w.w.Write(p)
}

func TestReadingFilesEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sandbox.NewFiles(openRoot(t, t.TempDir())).ReadTar(ctx, "/", ".", io.Discard); err == nil {
		t.Error("a tar was written after the end")
	}
}

func TestFilesKeepAttributesAndHardLinks(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.WriteFile(filepath.Join(from, "a"), []byte("text"), 0o640), os.Link(filepath.Join(from, "a"), filepath.Join(from, "b")),
		unix.Mkfifo(filepath.Join(from, "p"), 0o600), os.Symlink("a", filepath.Join(from, "l")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(filepath.Join(from, "a"), "user.note", []byte("kept\x00"), 0); err != nil {
		t.Skip("needs a file system with user attributes: ", err)
	}
	var b bytes.Buffer
	if err := sandbox.NewFiles(openRoot(t, from)).ReadTar(t.Context(), "/", ".", &b); err != nil {
		t.Fatal(err)
	}
	o := sandbox.WriteTarOptions{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if err := sandbox.NewFiles(openRoot(t, to)).WriteTar(t.Context(), "/", &b, o); err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(to, "b"), "user.note", value); err != nil || string(value[:n]) != "kept\x00" {
		t.Errorf("the attribute is %q, %v", value[:max(n, 0)], err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(to, "a"), &st); err != nil || st.Nlink != 2 || st.Mode&0o777 != 0o640 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := unix.Lstat(filepath.Join(to, "p"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		t.Errorf("%+v, %v", st, err)
	}
}
