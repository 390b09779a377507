package ops

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/registry"
	"den/internal/store"
	"den/internal/store/storetest"
)

// storeEnv is an Env with a store of its own, which other Envs can open too.
func storeEnv(t testing.TB, root string) *Env {
	t.Helper()
	st, err := store.Open(context.Background(), root, store.Options{EngineDir: t.TempDir(), Image: storetest.Images(), UnsafeFS: true, Durability: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	reg, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &Env{Store: st, Images: image.New(st, reg, image.Options{})}
}

// A testFile is a line of a tree: a directory if its name ends in a slash, a
// link if it has a target.
type testFile struct {
	name, content, link string
	mode                uint32
	uid                 uint32
}

var testTime = time.Unix(1_700_000_000, 0)

func testTree(files ...testFile) iter.Seq2[layer.File, error] {
	slices.SortFunc(files, func(a, b testFile) int {
		return layer.ComparePaths(strings.TrimSuffix(a.name, "/"), strings.TrimSuffix(b.name, "/"))
	})
	return func(yield func(layer.File, error) bool) {
		for _, f := range files {
			e := oci.Entry{Path: strings.TrimSuffix(f.name, "/"), UID: f.uid, ModTime: testTime, Link: f.link}
			var open func() (io.ReadCloser, error)
			switch {
			case f.link != "":
				e.Mode = syscall.S_IFLNK | 0o777
			case strings.HasSuffix(f.name, "/"):
				e.Mode = syscall.S_IFDIR | 0o755
			default:
				e.Mode, e.Size = syscall.S_IFREG|0o644, int64(len(f.content))
				open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.content)), nil }
			}
			if f.mode != 0 {
				e.Mode = e.Mode&syscall.S_IFMT | f.mode
			}
			if !yield(layer.File{Entry: e, Open: open}, nil) {
				return
			}
		}
	}
}

// needsOwners skips where the files of a layer cannot be given to root.
func needsOwners(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the files of a layer have owners")
	}
}

// testRef is a Ref of one layer with these files.
func testRef(t testing.TB, env *Env, files ...testFile) *Ref {
	t.Helper()
	needsOwners(t)
	r, err := env.build(context.Background(), testTree(files...), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// content is the canonical tar of a Ref's layers, flattened, as text: one line
// for each entry.
func content(t *testing.T, r *Ref) string {
	t.Helper()
	trees, err := r.Trees(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return tarText(t, dirsOf(trees))
}

// changes is the content of a Ref's top layer alone, whiteouts as in a tar.
func changes(t *testing.T, r *Ref) string {
	t.Helper()
	trees, err := r.Trees(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return tarText(t, trees[len(trees)-1].Dirs())
}

func tarText(t *testing.T, dirs []string) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := layer.WriteTar(context.Background(), &b, layer.WalkStack(dirs)); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "./" || h.Name == "." {
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(h.Name)
		out.WriteString(" ")
		out.WriteString(h.FileInfo().Mode().String())
		if h.Linkname != "" {
			out.WriteString(" -> " + h.Linkname)
		}
		if len(data) > 0 {
			out.WriteString(" " + strings.TrimSpace(string(data)))
		}
		out.WriteString("\n")
	}
}

// execOne runs a source to its result.
func execOne(t *testing.T, op solver.Op) (*Ref, *solver.CacheMap) {
	t.Helper()
	needsOwners(t)
	m, err := op.CacheMap(context.Background(), progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	out, err := op.Exec(context.Background(), nil, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(out) })
	return out[0].(*Ref), m
}

func sourceVertex(id string, attrs map[string]string) *llb.Vertex {
	return &llb.Vertex{Digest: "sha256:test", Op: sourceOp(id, attrs)}
}
