package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An entry is a file as an image describes it.
type entry struct {
	Type    string
	Mode    string // octal
	Owner   string // uid:gid
	Size    int64
	Link    string // a symbolic link's target
	Same    string // the first name of a file with several
	Device  string // major:minor
	Xattrs  map[string]string
	ModTime time.Time
	Sum     string // of the content, short
}

// A tree is a file system as an image's layers give it, by path without "/".
type tree map[string]entry

var typeNames = map[byte]string{tar.TypeReg: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo"}

// apply lays a layer's tar over the tree.
func (tr tree) apply(t testing.TB, r io.Reader) {
	t.Helper()
	in := tar.NewReader(r)
	fresh := map[string]bool{}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := path.Clean("/" + h.Name)[1:]
		dir, base := path.Split(name)
		switch {
		case base == ".wh..wh..opq":
			tr.remove(path.Clean("/" + dir)[1:], fresh, false)
			continue
		case strings.HasPrefix(base, ".wh."):
			tr.remove(dir+strings.TrimPrefix(base, ".wh."), fresh, true)
			continue
		}
		if old, ok := tr[name]; ok && (old.Type != "dir" || h.Typeflag != tar.TypeDir) {
			tr.remove(name, fresh, true)
		}
		tr[name] = tr.entry(t, h, in, name)
		fresh[name] = true
	}
}

// remove drops what is below name (and name itself), except what the layer itself brought.
func (tr tree) remove(name string, fresh map[string]bool, itself bool) {
	for p := range tr {
		if !fresh[p] && (itself && p == name || strings.HasPrefix(p, name+"/") || name == "") {
			delete(tr, p)
		}
	}
}

func (tr tree) entry(t testing.TB, h *tar.Header, r io.Reader, name string) entry {
	t.Helper()
	if h.Typeflag == tar.TypeLink {
		first := path.Clean("/" + h.Linkname)[1:]
		e, ok := tr[first]
		if !ok {
			t.Fatalf("%s is a hard link to %s, which is not there", name, first)
		}
		e.Same = min(first, name)
		if e.Same != first || tr[first].Same == "" {
			old := tr[first]
			old.Same = e.Same
			tr[first] = old
		}
		return e
	}
	e := entry{Type: typeNames[h.Typeflag], Mode: fmt.Sprintf("%04o", h.Mode&0o7777), Owner: fmt.Sprintf("%d:%d", h.Uid, h.Gid), ModTime: h.ModTime.UTC()}
	if e.Type == "" {
		t.Fatalf("%s has type %q", name, h.Typeflag)
	}
	if h.Typeflag == tar.TypeSymlink {
		e.Link = h.Linkname
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		e.Device = fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor)
	}
	for k, v := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[attr] = v
		}
	}
	if h.Typeflag == tar.TypeReg {
		sum := sha256.New()
		n, err := io.Copy(sum, r)
		if err != nil {
			t.Fatal(err)
		}
		e.Size, e.Sum = n, fmt.Sprintf("%x", sum.Sum(nil)[:8])
	}
	return e
}

// readTree is the tree of one tar file.
func readTree(t testing.TB, file string) tree {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr := tree{}
	tr.apply(t, f)
	return tr
}

// below is the part of the tree under dir, dir included, without times.
func (tr tree) below(dir string) tree {
	out := tree{}
	for p, e := range tr {
		if p == dir || dir == "" || strings.HasPrefix(p, dir+"/") {
			e.ModTime = time.Time{}
			out[p] = e
		}
	}
	return out
}

// names are the tree's paths, sorted.
func (tr tree) names() []string { return slices.Sorted(maps.Keys(tr)) }

// holds checks that a file has this text.
func (tr tree) holds(t *testing.T, name, text string) {
	t.Helper()
	e, ok := tr[name]
	if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:16]; !ok || e.Sum != sum {
		t.Errorf("%s is %+v, want a file that says %q", name, e, text)
	}
}

// lacks checks that nothing is there.
func (tr tree) lacks(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if e, ok := tr[name]; ok {
			t.Errorf("%s is there: %+v", name, e)
		}
	}
}

// is checks type, mode and owner, written "file 0644 0:0".
func (tr tree) is(t *testing.T, name, want string) {
	t.Helper()
	e, ok := tr[name]
	if got := e.Type + " " + e.Mode + " " + e.Owner; !ok || got != want {
		t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// diff compares two trees.
func diff(want, got any) string { return cmp.Diff(want, got) }

// decompress unpacks gzip or zstd or leaves what is neither.
func decompress(t testing.TB, b []byte) []byte {
	t.Helper()
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		return out
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		need(t, "zstd")
		cmd := exec.Command("zstd", "-dc")
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	return b
}
