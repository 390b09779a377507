package ops

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/solver/pb"
)

// tarOf makes an archive: names with a slash at the end are directories.
func tarOf(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		data := ""
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			data = "data of " + h.Name
			h.Size = int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.ModTime = testTime
		check(t, w.WriteHeader(h))
		_, err := w.Write([]byte(data))
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	check(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	check(t, err)
	return w.EncodeAll(data, nil)
}

func unpacked(a *pb.FileActionCopy) { a.AttemptUnpackDockerCompatibility = true }

func TestUnpackIsBuildKits(t *testing.T) {
	needRoot(t)
	src, base := t.TempDir(), plant(t, t.TempDir(), "exists/old", "exists/dir/keep", "d/l -> over", "d/file", "d/over/x")
	old(t, base)
	plain := tarOf(t,
		&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		&tar.Header{Name: "./a"}, &tar.Header{Name: "implied/b", Mode: 0o4755}, &tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o2770},
		&tar.Header{Name: "dir/s", Typeflag: tar.TypeSymlink, Linkname: "../a"}, &tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "a"},
		&tar.Header{Name: "over"}, &tar.Header{Name: "old", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "old/x"},
		&tar.Header{Name: "l/into"}, &tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}, &tar.Header{Name: "a", Mode: 0o600},
		&tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}},
	)
	for name, data := range map[string][]byte{
		"a.tar": plain, "a.tar.gz": gzipped(t, plain), "a.tar.zst": zstded(t, plain),
		"text.tar": []byte("not an archive"), "text.gz": gzipped(t, []byte("not an archive")), "empty.tar": tarOf(t), "none": nil,
	} {
		check(t, os.WriteFile(filepath.Join(src, name), data, 0o640))
	}
	check(t, os.Symlink("a.tar", filepath.Join(src, "link.tar")))
	old(t, src)
	for _, a := range []*pb.FileActionCopy{
		cp("/a.tar", "/new", unpacked), cp("/a.tar.gz", "/new/deep/", unpacked), cp("/a.tar.zst", "/exists", unpacked), cp("/a.tar", "/d", unpacked),
		cp("/a.tar", "/d/l", unpacked), cp("/link.tar", "/new", unpacked), cp("/a.tar", "/d/file", unpacked), cp("*.tar", "/new/", unpacked),
		cp("/text.tar", "/new", unpacked), cp("/text.gz", "/new/", unpacked), cp("/empty.tar", "/new", unpacked), cp("/none", "/new", unpacked),
		cp("/a.tar", "/new/"), cp("/a.tar", "/", unpacked), cp("/a.tar", "/new", unpacked, func(a *pb.FileActionCopy) { a.Timestamp = 0 }),
	} {
		compareCopy(t, src, base, a, nil)
		if os.Getuid() == 0 {
			compareCopy(t, src, base, a, &fileOwner{7, 8})
		}
	}
}

func TestHostileArchivesStayInside(t *testing.T) {
	src := t.TempDir()
	for name, headers := range map[string][]*tar.Header{
		"dotdot.tar":   {{Name: "../../escape"}},
		"hardlink.tar": {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}},
		"missing.tar":  {{Name: "h", Typeflag: tar.TypeLink, Linkname: "nowhere"}},
		"loop.tar":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "l"}, {Name: "l/x"}},
		"notdir.tar":   {{Name: "f"}, {Name: "f/x"}},
	} {
		check(t, os.WriteFile(filepath.Join(src, name), tarOf(t, headers...), 0o644))
	}
	check(t, os.WriteFile(filepath.Join(src, "inside.tar"), tarOf(t,
		&tar.Header{Name: "abs", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, &tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: "../../../../tmp"},
		&tar.Header{Name: "etc/", Typeflag: tar.TypeDir}, &tar.Header{Name: "tmp/", Typeflag: tar.TypeDir},
		&tar.Header{Name: "abs/passwd"}, &tar.Header{Name: "up/file"}, &tar.Header{Name: "/root"}), 0o644))
	whole, err := os.ReadFile(filepath.Join(src, "inside.tar"))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(src, "short.tar"), whole[:1600], 0o644))

	for _, name := range []string{"dotdot", "hardlink", "missing", "loop", "notdir", "short"} {
		made := newFileTree(nil, testTime)
		if err := made.doCopy(t.Context(), cp("/"+name+".tar", "/x", unpacked), dirView(src), nil, spoolIn(t)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	made := newFileTree(nil, testTime)
	check(t, made.doCopy(t.Context(), cp("/inside.tar", "/in/side", unpacked), dirView(src), nil, spoolIn(t)))
	for _, p := range []string{"/in/side/etc/passwd", "/in/side/tmp/file", "/in/side/root"} {
		if _, err := made.lstat(p); err != nil {
			t.Error(err)
		}
	}
	if top, err := made.readDir("/"); err != nil || len(top) != 1 {
		t.Errorf("%v, %v", top, err)
	}
}
