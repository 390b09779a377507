package sandboxtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// filer starts a sandbox and skips the test where its files cannot be read from outside.
func (b *Bench) filer(r *sandbox.Request) (sandbox.Sandbox, sandbox.Filer, func()) {
	b.Helper()
	s, end := b.live(r)
	f, ok := s.(sandbox.Filer)
	if !ok {
		_ = s.Signal(unix.SIGKILL)
		b.Skip("needs an executor whose sandboxes' files can be read from outside")
	}
	return s, f, end
}

// inTime fails the test where an operation on files hangs.
func (b *Bench) inTime() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), limit)
	b.Cleanup(cancel)
	return ctx
}

// listTar is a line for each entry: name, type, mode, owner, link target and content.
func (b *Bench) listTar(data []byte) []string {
	b.Helper()
	var lines []string
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(lines)
			return lines
		}
		b.must(err)
		content, err := io.ReadAll(tr)
		b.must(err)
		lines = append(lines, fmt.Sprintf("%s %c %o %d:%d %s%s", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, content))
	}
}

func filesRead(b *Bench) {
	b.Put("etc/lower", "below", 0o640)
	volume := b.TempDir()
	b.must(os.WriteFile(filepath.Join(volume, "v"), []byte("volume"), 0o644))
	r := b.Request(`mkdir -p /d/sub; echo one >/d/a; chown 5:6 /d/a; chmod 4751 /d/a; ln /d/a /d/b; ln -s a /d/l; ln -s /etc /d/out; mkdir -m 1777 /d/t; ` + idle)
	s, f, end := b.filer(r)
	ctx := b.inTime()
	st, err := f.Stat(ctx, "/d/a")
	b.must(err)
	if st.Name != "a" || st.Size != 4 || st.Mode != 0o751|fs.ModeSetuid || time.Since(st.ModTime) > time.Hour {
		b.Errorf("%+v", st)
	}
	st, err = f.Stat(ctx, "/d/out")
	b.must(err)
	if st.Mode.Type() != fs.ModeSymlink || st.LinkTarget != "/etc" {
		b.Errorf("%+v", st)
	}
	st, err = f.Stat(ctx, "/d/out/") // a slash follows the link
	b.must(err)
	if !st.Mode.IsDir() {
		b.Errorf("%+v", st)
	}
	if _, err = f.Stat(ctx, "/no/such"); !errors.Is(err, fs.ErrNotExist) {
		b.Errorf("a missing file: %v", err)
	}
	if err = f.ReadTar(ctx, "/no/such", "such", io.Discard); !errors.Is(err, fs.ErrNotExist) {
		b.Errorf("a missing file: %v", err)
	}
	var out bytes.Buffer
	b.must(f.ReadTar(ctx, "/d", "d", &out))
	lines := b.listTar(out.Bytes())
	// Which of the two names comes first is nobody's promise.
	i := slices.IndexFunc(lines, func(l string) bool {
		return strings.HasSuffix(l, "1 4751 5:6 d/a") || strings.HasSuffix(l, "1 4751 5:6 d/b")
	})
	j := slices.IndexFunc(lines, func(l string) bool { return strings.HasSuffix(l, "0 4751 5:6 one\n") })
	if i < 0 || j < 0 {
		b.Fatalf("the two names of a file are %q", lines)
	}
	lines = slices.Delete(slices.Delete(lines, max(i, j), max(i, j)+1), min(i, j), min(i, j)+1)
	b.want(strings.Join(lines, "|"), "d/ 5 755 0:0 |d/l 2 777 0:0 a|d/out 2 777 0:0 /etc|d/sub/ 5 755 0:0 |d/t/ 5 1777 0:0 ")
	out.Reset()
	b.must(f.ReadTar(ctx, "/d/out/lower", "as", &out))
	b.want(strings.Join(b.listTar(out.Bytes()), "|"), fmt.Sprintf("as 0 640 %d:%d below", os.Getuid(), os.Getgid()))
	b.must(f.WriteTar(ctx, "/d/t", b.archive(tar.Header{Name: "in", Typeflag: tar.TypeReg, Mode: 0o600}), sandbox.WriteTarOptions{}))
	out.Reset()
	b.must(f.ReadTar(ctx, "/d/t", ".", &out)) // docker's client looks for "./" at the beginning of each name
	b.want(strings.Join(b.listTar(out.Bytes()), "|"), "./ 5 1777 0:0 |./in 0 600 0:0 ")
	_ = s
	end()
}

// archive makes a tar of headers; a regular file's content is its Linkname.
func (b *Bench) archive(hs ...tar.Header) io.Reader {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range hs {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
		}
		h.Size = int64(len(content))
		b.must(w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		b.must(err)
	}
	b.must(w.Close())
	return &out
}

func filesWrite(b *Bench) {
	s, f, end := b.filer(b.Request("mkdir /d /d/dir /d/full; echo x >/d/full/f; echo old >/d/file; mkfifo /d/fifo 2>/dev/null || mknod /d/fifo p; ln -s /etc /d/link; " + idle))
	if _, ok := s.(sandbox.Execer); !ok {
		b.execer(s)
	}
	ctx := b.inTime()
	when := time.Unix(1e9, 0)
	b.must(f.WriteTar(ctx, "/d", b.archive(
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "new/", Typeflag: tar.TypeDir, Mode: 0o2775, Uid: 3, Gid: 4, ModTime: when},
		tar.Header{Name: "new/f", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 5, Gid: 6, Linkname: "text", ModTime: when},
		tar.Header{Name: "new/h", Typeflag: tar.TypeLink, Linkname: "new/f"},
		tar.Header{Name: "new/s", Typeflag: tar.TypeSymlink, Linkname: "f", Uid: 7, Gid: 8},
		tar.Header{Name: "fifo", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "not a pipe"},
		tar.Header{Name: "deep/er/f", Typeflag: tar.TypeReg, Mode: 0o644},
		tar.Header{Name: "link/inside", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "etc"},
		tar.Header{Name: "full", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "was a directory"},
	), sandbox.WriteTarOptions{CopyOwners: true}))
	out, _ := b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{}, `cd /d; stat -c '%n %a %u:%g %Y' new new/f; stat -c '%n %h' new/h; readlink new/s; stat -c '%u' new/s; cat new/f fifo /etc/inside full; echo; stat -c '%F' fifo; stat -c %a . deep`)})
	b.want(out, "new 2775 3:4 1000000000\nnew/f 4755 5:6 1000000000\nnew/h 2\nf\n7\ntextnot a pipeetcwas a directory\nregular file\n755\n755\n")

	b.must(f.WriteTar(ctx, "/d/link", b.archive(tar.Header{Name: "mine", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 5}), sandbox.WriteTarOptions{UID: 11, GID: 12}))
	out, _ = b.exec(s, &sandbox.ExecRequest{Process: b.process(sandbox.SpecOptions{}, "stat -c '%a %u:%g' /etc/mine")})
	b.want(out, "600 11:12\n")
	for _, h := range []tar.Header{{Name: "dir", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: "file/", Typeflag: tar.TypeDir, Mode: 0o755}} {
		if err := f.WriteTar(ctx, "/d", b.archive(h), sandbox.WriteTarOptions{KeepKinds: true}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "cannot overwrite") {
			b.Errorf("%s: %v", h.Name, err)
		}
	}
	if err := f.WriteTar(ctx, "/d", b.archive(tar.Header{Name: "../x", Typeflag: tar.TypeReg, Mode: 0o644}), sandbox.WriteTarOptions{}); err == nil {
		b.Error("an entry above the directory was unpacked")
	}
	if err := f.WriteTar(ctx, "/no/such", b.archive(), sandbox.WriteTarOptions{}); !errors.Is(err, fs.ErrNotExist) {
		b.Errorf("into a missing directory: %v", err)
	}
	end()
}

// filesHostile: links, pipes and devices of a payload neither lead out nor are waited for.
func filesHostile(b *Bench) {
	outside := b.TempDir()
	b.must(os.Chmod(outside, 0o777))
	b.must(os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	r := b.Request(fmt.Sprintf(`mkdir /h; ln -s %s /h/abs; ln -s ../../../../../../../..%s /h/dots; ln -s /proc/1/root /h/proc; mkfifo /h/pipe 2>/dev/null || mknod /h/pipe p; ln -s loop /h/loop; `, outside, outside) + idle)
	_, f, end := b.filer(r)
	ctx := b.inTime()
	for _, name := range []string{"/h/abs/secret", "/h/dots/secret", "/../../.." + outside + "/secret", "/h/loop/x"} {
		if st, err := f.Stat(ctx, name); err == nil {
			b.Errorf("%s: %+v", name, st)
		}
		if err := f.ReadTar(ctx, name, "x", io.Discard); err == nil {
			b.Errorf("%s was read", name)
		}
	}
	for _, dir := range []string{"/h/abs", "/h/dots"} {
		if err := f.WriteTar(ctx, dir, b.archive(tar.Header{Name: "written", Typeflag: tar.TypeReg, Mode: 0o644}), sandbox.WriteTarOptions{}); err == nil {
			b.Errorf("%s was written to", dir)
		}
	}
	b.must(f.WriteTar(ctx, "/h", b.archive(
		tar.Header{Name: "to", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../.." + outside},
		tar.Header{Name: "hard", Typeflag: tar.TypeSymlink, Linkname: outside + "/secret"},
	), sandbox.WriteTarOptions{}))
	_ = f.WriteTar(ctx, "/h", b.archive(tar.Header{Name: "to/written", Typeflag: tar.TypeReg, Mode: 0o644}), sandbox.WriteTarOptions{})
	if err := f.WriteTar(ctx, "/h", b.archive(tar.Header{Name: "in", Typeflag: tar.TypeLink, Linkname: "../../.." + outside + "/secret"}), sandbox.WriteTarOptions{}); err == nil {
		b.Error("a hard link out of the directory was made")
	}
	var out bytes.Buffer
	b.must(f.ReadTar(ctx, "/h", "h", &out))
	if text := strings.Join(b.listTar(out.Bytes()), "|"); strings.Contains(text, " 0 ") || !strings.Contains(text, "h/pipe 6 ") { // no file
		b.Errorf("got %q", text)
	}
	entries, err := os.ReadDir(outside)
	b.must(err)
	if len(entries) != 1 {
		b.Errorf("outside are %v", entries)
	}
	end()
}
