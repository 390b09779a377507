package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// rawTar writes headers as they are; a body is h.Size bytes of 'x'.
func rawTar(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		h := *h
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Uid == 0 && h.Gid == 0 {
			h.Uid, h.Gid = int(mine.UID), int(mine.GID)
		}
		h.ModTime = time.Unix(1700000000, 0)
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(tw, xs{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type xs struct{}

func (xs) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func file(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Size: size, Mode: 0o644}
}
func link(name, to string) *tar.Header {
	return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
}
func hard(name, to string) *tar.Header {
	return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
}
func folder(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeDir} }

// sandboxed unpacks into a tree that lies beside a secret and fails the test if
// anything but that tree changed.
func sandboxed(t *testing.T, f form, data []byte) (string, error) {
	t.Helper()
	outer := t.TempDir()
	inner := filepath.Join(outer, "inner")
	for _, d := range []string{inner, filepath.Join(outer, "secret")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outer, "secret/file"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := f.at(t, filepath.Join(inner, "tree"))
	_, err := Unpack(context.Background(), bytes.NewReader(data), tree, f.with(UnpackOptions{Owner: &mine}))
	if left, _ := os.ReadDir(inner); f.image && err != nil && len(left) > 0 {
		t.Errorf("after a failure there is %v", left)
	}
	var found []string
	_ = filepath.WalkDir(outer, func(path string, d os.DirEntry, _ error) error {
		if path == inner {
			return filepath.SkipDir
		}
		found = append(found, strings.TrimPrefix(path, outer))
		return nil
	})
	if got := strings.Join(found, " "); got != " /secret /secret/file" {
		t.Errorf("outside of the tree there is %q", got)
	}
	if fi, _ := os.Lstat(filepath.Join(outer, "secret/file")); fi.Mode() != 0o600 || fi.Size() != 6 || fi.Sys() == nil {
		t.Errorf("the secret became %v", fi.Mode())
	}
	return tree, err
}

func TestHostileTarsAreRefused(t *testing.T) {
	for name, headers := range map[string][]*tar.Header{
		"parent":                 {file("../secret/file", 1)},
		"parent in the middle":   {file("a/../../secret/file", 1)},
		"only dots":              {file("..", 1)},
		"root as file":           {file(".", 1)},
		"root as link":           {link(".", "/etc")},
		"hard link out":          {hard("a", "../secret/file")},
		"hard link absolute":     {hard("a", "/secret/file")},
		"hard link to directory": {folder("d"), hard("a", "d")},
		"hard link to root":      {folder("d"), hard("a", "/")},
		"hard link to itself":    {file("a", 1), hard("a", "a")},
		"hard link to nothing":   {hard("a", "b")},
		"hard link to removed":   {file(".wh.b", 0), hard("a", "b")},
		"hard link through link": {link("l", "../secret"), hard("a", "l/file")},
		"hard link into its own": {file("a/b", 1), hard("a", "a/b")},
		"file as parent":         {file("a", 1), file("a/b", 1)},
		"link loop as parent":    {link("a", "b"), link("b", "a"), file("a/x", 1)},
		"link to itself":         {link("a", "a"), file("a/x", 1)},
		"whiteout of nothing":    {file(".wh.", 0)},
		"whiteout of dot":        {file("d/.wh..", 0)},
		"whiteout of dots":       {file("d/.wh...", 0)},
		"whiteout as directory":  {file(".wh.d/x", 0)},
		"opaque file":            {file("d", 0), file("d/.wh..wh..opq", 0)},
		"path too long":          {file(strings.Repeat("a/", 2100)+"b", 1)},
		"name too long":          {file(strings.Repeat("a", 256), 1)},
		"device 0:0":             {&tar.Header{Name: "w", Typeflag: tar.TypeChar}},
		"device out of range":    {&tar.Header{Name: "w", Typeflag: tar.TypeChar, Devmajor: 5000}},
		"unknown type":           {&tar.Header{Name: "w", Typeflag: 'Q'}},
		"contiguous file":        {&tar.Header{Name: "w", Typeflag: tar.TypeCont}},
		"owner out of range":     {&tar.Header{Name: "w", Uid: 1 << 32}},
		"owner minus one":        {&tar.Header{Name: "w", Uid: 1<<32 - 1}},
		"empty symlink":          {link("a", "")},
		"long symlink":           {link("a", strings.Repeat("b", 5000))},
		"many attributes":        {manyXattrs(300)},
		"huge attribute":         {&tar.Header{Name: "w", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 70000)}}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range forms() {
				_, err := sandboxed(t, f, rawTar(t, headers...))
				if err == nil {
					t.Fatalf("%s: no error", f)
				}
				if !errdefs.IsInvalidArgument(err) {
					t.Errorf("%s: not an invalid argument: %v", f, err)
				}
				if len(err.Error()) > 1200 {
					t.Errorf("%s: the error is %d bytes long", f, len(err.Error()))
				}
			}
		})
	}
}

func manyXattrs(n int) *tar.Header {
	h := &tar.Header{Name: "w", PAXRecords: map[string]string{}}
	for i := range n {
		h.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.a%d", i)] = "v"
	}
	return h
}

func TestEntriesThroughLinksStayInside(t *testing.T) {
	for name, headers := range map[string][]*tar.Header{
		"absolute":  {folder("secret"), link("l", "/secret"), file("l/file", 9)},
		"dots":      {folder("secret"), folder("d"), link("d/l", "../../../secret"), file("d/l/file", 9)},
		"two steps": {folder("secret"), link("m", "secret"), link("l", "./m/."), file("l/file", 9)},
		"dangling":  {link("l", "/secret"), file("l/file", 9)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range forms() {
				tree, err := sandboxed(t, f, rawTar(t, headers...))
				if err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(list(t, WalkUpper(tree)), func(e oci.Entry) bool { return e.Path == "secret/file" && e.Size == 9 }) {
					t.Errorf("%s: the file is not where the link leads inside", f)
				}
			}
		})
	}
}

func TestLaterEntriesReplaceEarlierOnes(t *testing.T) {
	for name, test := range map[string]struct {
		headers []*tar.Header
		want    string
	}{
		"file over file":         {[]*tar.Header{file("a", 1), file("a", 2)}, "a 2"},
		"file over link":         {[]*tar.Header{link("a", "/etc/passwd"), file("a", 2)}, "a 2"},
		"file over full dir":     {[]*tar.Header{file("a/b/c", 1), file("a", 2)}, "a 2"},
		"dir over file":          {[]*tar.Header{file("a", 1), folder("a"), file("a/b", 3)}, "a dir, a/b 3"},
		"dir over link":          {[]*tar.Header{folder("b"), link("a", "b"), folder("a"), file("a/c", 3)}, "a dir, a/c 3, b dir"},
		"dir over dir":           {[]*tar.Header{file("a/b", 1), folder("a"), file("a/c", 1)}, "a dir, a/b 1, a/c 1"},
		"link over full dir":     {[]*tar.Header{file("a/b", 1), link("a", "/")}, "a -> /"},
		"hard link over file":    {[]*tar.Header{file("a", 1), file("b", 2), hard("b", "a")}, "a 1, b = a"},
		"again a hard link":      {[]*tar.Header{file("a", 1), hard("b", "a"), hard("b", "a")}, "a 1, b = a"},
		"original replaced":      {[]*tar.Header{file("a", 1), hard("b", "a"), file("a", 3)}, "a 3, b 1"},
		"whiteout then file":     {[]*tar.Header{file(".wh.a", 0), file("a", 1)}, "a 1"},
		"whiteout then dir":      {[]*tar.Header{file(".wh.a", 0), folder("a"), file("a/b", 1)}, "a dir opaque, a/b 1"},
		"whiteout then child":    {[]*tar.Header{file(".wh.a", 0), file("a/b", 1)}, "a dir opaque, a/b 1"},
		"dir then whiteout":      {[]*tar.Header{file("a/b", 1), file(".wh.a", 0)}, "a dir opaque, a/b 1"},
		"file then whiteout":     {[]*tar.Header{file("a", 1), file(".wh.a", 0)}, "a 1"},
		"opaque before its dir":  {[]*tar.Header{file("a/.wh..wh..opq", 0), folder("a"), file("a/b", 1)}, "a dir opaque, a/b 1"},
		"opaque after its files": {[]*tar.Header{file("a/b", 1), file("a/.wh..wh..opq", 0)}, "a dir opaque, a/b 1"},
		"AUFS's own files":       {[]*tar.Header{file(".wh..wh.aufs", 0), folder(".wh..wh.plnk"), file(".wh..wh.plnk/12.34", 1), file("a", 1)}, "a 1"},
		"leading slash and dots": {[]*tar.Header{file("/a", 1), file("./b", 1), file("c/./d/../e", 1), file("//f", 1)}, "a 1, b 1, c dir, c/e 1, f 1"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range forms() {
				tree, err := sandboxed(t, f, rawTar(t, test.headers...))
				if err != nil {
					t.Fatal(err)
				}
				if got := summary(list(t, WalkUpper(tree))); got != test.want {
					t.Errorf("%s: got  %s\nwant %s", f, got, test.want)
				}
			}
		})
	}
}

// summary is a tree in one line.
func summary(entries []oci.Entry) string {
	var got []string
	for _, e := range entries {
		s := e.Path
		switch {
		case e.Whiteout:
			s += " removed"
		case e.Hardlink:
			s += " = " + e.Link
		case e.Mode&unix.S_IFMT == unix.S_IFDIR:
			s += " dir"
		case e.Link != "":
			s += " -> " + e.Link
		default:
			s += fmt.Sprintf(" %d", e.Size)
		}
		if e.Opaque {
			s += " opaque"
		}
		got = append(got, s)
	}
	return strings.Join(got, ", ")
}

func TestForeignBookkeepingIsNotApplied(t *testing.T) {
	h := folder("d")
	h.PAXRecords = map[string]string{"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.den.device": "c 1:1", "SCHILY.xattr.user.kept": "v"}
	eachForm(t, func(t *testing.T, f form) {
		tree, err := sandboxed(t, f, rawTar(t, h))
		if err != nil {
			t.Fatal(err)
		}
		entries := list(t, WalkUpper(tree))
		if len(entries) != 1 || entries[0].Opaque || len(entries[0].Xattrs) != 1 || string(entries[0].Xattrs["user.kept"]) != "v" {
			t.Errorf("the tree holds %+v", entries)
		}
		if f.image {
			return
		}
		var buf [1024]byte
		n, err := unix.Listxattr(filepath.Join(tree, "d"), buf[:])
		if err != nil || string(buf[:n]) != "user.kept\x00" {
			t.Errorf("attributes are %q, %v", buf[:n], err)
		}
	})
}

func TestTruncatedTarsAreErrors(t *testing.T) {
	eachForm(t, func(t *testing.T, f form) {
		data := rawTar(t, folder("d"), file("d/f", 3000))
		for _, n := range []int{100, 700, 1100, 2000, 3900} {
			_, err := Unpack(context.Background(), bytes.NewReader(data[:n]), f.new(t), f.with(UnpackOptions{}))
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		boom := errors.New("boom")
		_, err := Unpack(context.Background(), io.MultiReader(bytes.NewReader(data), iotest.ErrReader(boom)), f.new(t), f.with(UnpackOptions{}))
		if !errors.Is(err, boom) {
			t.Errorf("an error behind the last entry is lost: %v", err)
		}
	})
}

func TestLimitsHold(t *testing.T) {
	eachForm(t, func(t *testing.T, f form) {
		data := rawTar(t, file("a", 100), file("b", 100))
		_, err := Unpack(context.Background(), bytes.NewReader(data), f.new(t), f.with(UnpackOptions{MaxBytes: 150}))
		if !errors.Is(err, oci.ErrTooLarge) {
			t.Errorf("MaxBytes: %v", err)
		}
		_, err = Unpack(context.Background(), bytes.NewReader(data), f.new(t), f.with(UnpackOptions{MaxEntries: 1}))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("MaxEntries: %v", err)
		}
		deep := rawTar(t, file("a/b/c/d", 1))
		_, err = Unpack(context.Background(), bytes.NewReader(deep), f.new(t), f.with(UnpackOptions{MaxEntries: 2, Owner: &mine}))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("MaxEntries and directories that no entry names: %v", err)
		}
	})
}

// gnuSparse is an old GNU sparse header of a file of size bytes with no data.
func gnuSparse(t *testing.T, size int64) []byte {
	t.Helper()
	data := rawTar(t, file("sparse", 0))
	block := data[:blockSize]
	block[156] = 'S'
	copy(block[257:265], "ustar  \x00")
	copy(block[386:], fmt.Sprintf("%011o\x00%011o\x00", size, 0)) // one empty piece at the end
	copy(block[483:], fmt.Sprintf("%011o\x00", size))
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func TestSparseFilesStaySparseAndBounded(t *testing.T) {
	eachForm(t, func(t *testing.T, f form) {
		tree, err := sandboxed(t, f, gnuSparse(t, 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		entries := list(t, WalkUpper(tree))
		if len(entries) != 1 || entries[0].Size != 1<<30 {
			t.Errorf("the tree holds %+v", entries)
		}
		where := tree
		if !f.image {
			where = filepath.Join(tree, "sparse")
		}
		var st unix.Stat_t
		if err := unix.Lstat(where, &st); err != nil || st.Blocks > 64 {
			t.Errorf("the file has %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
		}
		if _, err := sandboxed(t, f, gnuSparse(t, 1<<33-1)); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

func TestUnpackStopsWhenCancelled(t *testing.T) {
	eachForm(t, func(t *testing.T, f form) {
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe()
		go func() {
			_, _ = w.Write(rawTar(t, file("a", 1))[:2*blockSize])
			cancel()
			_ = w.CloseWithError(context.Canceled)
		}()
		if _, err := Unpack(ctx, r, f.new(t), f.with(UnpackOptions{})); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestDeepTreesNeedFewDescriptors(t *testing.T) {
	deep := strings.Repeat("d/", 1500)
	headers := []*tar.Header{file(deep+"a", 1), file("x", 1), file(deep+"b", 1), file(deep[:400]+"c", 1), file("d/y", 1), folder(deep)}
	eachForm(t, func(t *testing.T, f form) {
		tree, err := sandboxed(t, f, rawTar(t, headers...))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for f, err := range WalkUpper(tree) {
			if err != nil {
				t.Fatal(err)
			}
			if f.Mode&unix.S_IFMT == unix.S_IFREG {
				n++
			}
		}
		if n != 5 {
			t.Errorf("%d files, want 5", n)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add(rawTar(f, folder("d"), file("d/f", 30), link("l", "d"), hard("l/h", "d/f"), file("l/.wh.x", 0), file("d/.wh..wh..opq", 0)))
	f.Add(rawTar(f, file("../a", 1)))
	f.Add(rawTar(f, link("a", "/"), file("a/b", 1), manyXattrs(3)))
	f.Add(rawTar(f, &tar.Header{Name: strings.Repeat("long/", 60) + "ü", Uid: 1 << 30, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Add([]byte{})
	base := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = filepath.WalkDir(tree, func(p string, d os.DirEntry, _ error) error {
				if d != nil && d.IsDir() {
					_ = os.Chmod(p, 0o700)
				}
				return nil
			})
			_ = os.RemoveAll(tree)
		}()
		a, err := Unpack(context.Background(), bytes.NewReader(data), tree, UnpackOptions{Owner: &mine, InUserns: true, MaxBytes: 1 << 20, MaxEntries: 1000})
		if err != nil {
			return
		}
		if a.SizeBytes != int64(len(data)) {
			t.Fatalf("read %d bytes of %d", a.SizeBytes, len(data))
		}
		var first bytes.Buffer
		if _, err := WriteTar(context.Background(), &first, WalkUpper(tree)); err != nil {
			if errdefs.IsInvalidArgument(err) {
				return // names that a layer cannot hold
			}
			t.Fatal(err)
		}
		tree2, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(tree2)
		if _, err := Unpack(context.Background(), bytes.NewReader(first.Bytes()), tree2, UnpackOptions{Owner: &mine, InUserns: true}); err != nil {
			t.Fatalf("the canonical tar cannot be unpacked: %v", err)
		}
		var second bytes.Buffer
		if _, err := WriteTar(context.Background(), &second, WalkUpper(tree2)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("tars differ:\n%q\n%q", names(t, first.Bytes()), names(t, second.Bytes()))
		}
	})
}

// FuzzUnpackEntries takes bytes for a list of well-formed entries whose names
// collide: each four are a type, a name, a target and a mode.
func FuzzUnpackEntries(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x00\x02\x01\x05\x00\x01\x02\x00\x01"))
	f.Add([]byte("\x05\x03\x00\x00\x04\x03\x00\x00\x01\x04\x00\x00\x03\x08\x04\x00"))
	paths := []string{"a", "b", "a/b", "a/c", "b/a", "a/b/c", "b/a/c", "c", "./c/../a", "/", "a/b/c/d"}
	targets := []string{"a", "/", "..", "b/../a", "/b", "../../a/b", "c", "a/b/c", "b", "./c"}
	f.Fuzz(func(t *testing.T, data []byte) {
		var headers []*tar.Header
		for ; len(data) >= 4 && len(headers) < 60; data = data[4:] {
			h := &tar.Header{Name: paths[int(data[1])%len(paths)], Mode: int64([]int{0o755, 0o644, 0o4711, 0o2755}[data[3]%4])}
			target := targets[int(data[2])%len(targets)]
			switch data[0] % 7 {
			case 0:
				h.Typeflag = tar.TypeDir
			case 1:
				h.Size = int64(data[2]) * 3
			case 2:
				h.Typeflag, h.Linkname = tar.TypeSymlink, target
			case 3:
				h.Typeflag, h.Linkname = tar.TypeLink, target
			case 4:
				h.Name += "/.wh..wh..opq"
			case 5:
				h.Name = filepath.Dir(h.Name) + "/.wh." + filepath.Base(h.Name)
			case 6:
				h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, int64(data[2])
			}
			if h.Typeflag != tar.TypeDir && strings.HasSuffix(h.Name, "/") {
				h.Name = "a"
			}
			headers = append(headers, h)
		}
		// What one entry spoils, the ones before it still show.
		for len(headers) > 0 {
			tree, err := sandboxed(t, form{}, rawTar(t, headers...))
			image, imageErr := sandboxed(t, form{image: true}, rawTar(t, headers...))
			if err != nil {
				privilege := strings.Contains(err.Error(), "CAP_MKNOD")
				if !errdefs.IsInvalidArgument(err) && !privilege {
					t.Fatal(err)
				}
				if !errdefs.IsInvalidArgument(imageErr) && !privilege {
					t.Fatalf("the directory is refused and the image says %v: %v", imageErr, err)
				}
				headers = headers[:len(headers)-1]
				continue
			}
			if imageErr != nil {
				t.Fatalf("the directory was made and the image is refused: %v", imageErr)
			}
			first, _ := tarOf(t, WalkUpper(tree))
			for _, f := range forms() {
				checkAgain(t, f, first, tree, image)
				built := f.new(t)
				if a, err := BuildTar(context.Background(), built, bytes.NewReader(rawTar(t, headers...)), f.with(UnpackOptions{})); err == nil {
					checkWalk(t, built, a)
				}
			}
			return
		}
	})
}

// checkAgain makes trees out of trees of both forms, which all have one tar.
func checkAgain(t *testing.T, f form, want []byte, trees ...string) {
	t.Helper()
	again := f.new(t)
	if _, err := Unpack(context.Background(), bytes.NewReader(want), again, f.with(UnpackOptions{Owner: &mine})); err != nil {
		t.Fatal(err)
	}
	for _, tree := range append(trees, again) {
		got, a := tarOf(t, WalkUpper(tree))
		if !bytes.Equal(got, want) {
			t.Fatalf("tars differ:\n%q\n%q", names(t, got), names(t, want))
		}
		built, err := Build(context.Background(), f.new(t), WalkUpper(tree), f.with(UnpackOptions{Owner: &mine}))
		if err != nil {
			t.Fatal(err)
		}
		if built != a {
			t.Fatalf("Build says %v, WriteTar %v", built, a)
		}
	}
}
