package ops

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"den/internal/build/solver"
	"den/internal/layer"
	"den/internal/oci"
)

// deltaContext has enough files for a layer to be remembered.
func deltaContext(t testing.TB) string {
	dir := t.TempDir()
	for i := range 2 * deltaMinEntries {
		plant(t, dir, fmt.Sprintf("d%d/sub%d/f%d", i%7, i%3, i))
	}
	plant(t, dir, "h/one", "h/two = h/one", "link -> d1")
	old(t, dir)
	return dir
}

// over is how many trees lie below the topmost layer's own.
func over(t testing.TB, r *Ref) int {
	t.Helper()
	trees, err := r.Trees(t.Context())
	check(t, err)
	top := trees[len(trees)-1]
	// Whoever exports the layer walks its trees, and has to find the same.
	got, err := layer.WriteTar(t.Context(), io.Discard, layer.WalkStack(top.Dirs()))
	check(t, err)
	if got.DiffID != top.DiffID() {
		t.Errorf("the trees hold %s, the layer is %s", got.DiffID, top.DiffID())
	}
	return len(top.Meta().Over)
}

func copyAll(t testing.TB, env *Env, dir string, base solver.Result) *Ref {
	t.Helper()
	return runFileOne(t, env, []solver.Result{base, localRef(t, env, dir, nil)}, cp("/", "/app"))
}

func rewrite(p, data string) func(string) error {
	return func(dir string) error {
		p := filepath.Join(dir, p)
		return errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(data), 0o644))
	}
}

func TestChangedFileMakesADelta(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		change func(dir string) error
		over   int
	}{
		"content":         {rewrite("d1/sub1/f1", "other"), 1},
		"new file":        {rewrite("d1/sub1/new", "x"), 1},
		"new directories": {rewrite("n/e/w", "x"), 1},
		"mode":            {func(dir string) error { return os.Chmod(filepath.Join(dir, "d2/sub2/f2"), 0o600) }, 1},
		"directory":       {func(dir string) error { return os.Chmod(filepath.Join(dir, "d2"), 0o700) }, 1},
		"time":            {func(dir string) error { return os.Chtimes(filepath.Join(dir, "d0/sub0/f0"), testTime, testTime) }, 1},
		"new link":        {func(dir string) error { return os.Symlink("x", filepath.Join(dir, "d1/l")) }, 1},
		"removed":         {func(dir string) error { return os.Remove(filepath.Join(dir, "d1/sub1/f1")) }, 0},
		"file to directory": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "d1/sub1/f1")), os.Mkdir(filepath.Join(dir, "d1/sub1/f1"), 0o755))
		}, 0},
		"linked file": {rewrite("h/one", "other"), 0},
		"another name": {func(dir string) error {
			return os.Link(filepath.Join(dir, "d1/sub1/f1"), filepath.Join(dir, "d1/again"))
		}, 0},
		"nothing": {func(string) error { return nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			env := storeEnv(t, t.TempDir())
			dir := deltaContext(t)
			base := testRef(t, env, testFile{name: "app/"}, testFile{name: "app/d1/"}, testFile{name: "app/d1/base", content: "b"})
			copyAll(t, env, dir, base)
			check(t, c.change(dir))
			got := copyAll(t, env, dir, base)
			if n := over(t, got); n != c.over {
				t.Errorf("stacked on %d trees, want %d", n, c.over)
			}
			fresh := storeEnv(t, t.TempDir())
			want := copyAll(t, fresh, dir, testRef(t, fresh, testFile{name: "app/"}, testFile{name: "app/d1/"}, testFile{name: "app/d1/base", content: "b"}))
			if got.ID() != want.ID() {
				t.Errorf("got %s, made whole it is %s", got.ID(), want.ID())
			}
			if diff := cmp.Diff(merged(t, want), merged(t, got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Two pairs of equal files, linked the other way round, are another layer.
func TestLinksBetweenEqualFilesAreAChange(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	dir := deltaContext(t)
	link := func(pairs ...string) {
		t.Helper()
		for i := 0; i < len(pairs); i += 2 {
			_ = os.Remove(filepath.Join(dir, pairs[i+1]))
			check(t, os.Link(filepath.Join(dir, pairs[i]), filepath.Join(dir, pairs[i+1])))
		}
		for _, p := range pairs {
			check(t, os.Chtimes(filepath.Join(dir, p), testTime, testTime))
		}
	}
	check(t, errors.Join(rewrite("p1", "same")(dir), rewrite("p3", "same")(dir)))
	link("p1", "p2", "p3", "p4")
	copyAll(t, env, dir, nil)
	link("p1", "p4", "p3", "p2")
	check(t, rewrite("d1/sub1/f1", "other")(dir))
	got := copyAll(t, env, dir, nil)
	over(t, got)
	if want := copyAll(t, storeEnv(t, t.TempDir()), dir, nil); want.ID() != got.ID() {
		t.Errorf("got %s, made whole it is %s", got.ID(), want.ID())
	}
}

func TestDeltasAreStackedOnlySoHigh(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	dir := deltaContext(t)
	var heights []int
	for i := range deltaMaxBelow + 3 {
		check(t, rewrite("d1/sub1/f1", fmt.Sprint(i))(dir))
		heights = append(heights, over(t, copyAll(t, env, dir, nil)))
	}
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 0, 1}, heights); diff != "" {
		t.Error(diff)
	}
}

func TestRandomChangesGiveTheLayerThatIsMadeWhole(t *testing.T) {
	needRoot(t)
	r := rand.New(rand.NewPCG(3, 4))
	env := storeEnv(t, t.TempDir())
	dir := deltaContext(t)
	for round := range 12 {
		for range 1 + r.IntN(4) {
			p := fmt.Sprintf("d%d/sub%d/f%d", r.IntN(7), r.IntN(3), r.IntN(40))
			switch r.IntN(5) {
			case 0:
				_ = os.RemoveAll(filepath.Join(dir, p))
			case 1:
				_ = os.Chmod(filepath.Join(dir, p), 0o600)
			case 2:
				_ = os.Symlink("x", filepath.Join(dir, p+"l"))
			default:
				_ = rewrite(p, fmt.Sprint(round))(dir)
			}
		}
		got := copyAll(t, env, dir, nil)
		over(t, got)
		if want := copyAll(t, storeEnv(t, t.TempDir()), dir, nil); want.ID() != got.ID() {
			t.Fatalf("round %d: got %s, made whole it is %s", round, got.ID(), want.ID())
		}
	}
}

func TestVanishedEarlierLayerIsNoError(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	env := storeEnv(t, root)
	dir := deltaContext(t)
	check(t, copyAll(t, env, dir, nil).Close())
	check(t, os.RemoveAll(filepath.Join(root, "layers")))
	check(t, os.Mkdir(filepath.Join(root, "layers"), 0o755))
	env = storeEnv(t, root)
	check(t, rewrite("d1/sub1/f1", "x")(dir))
	if n := over(t, copyAll(t, env, dir, nil)); n != 0 {
		t.Errorf("stacked on %d trees", n)
	}
}

func TestManifestSurvivesItsEncoding(t *testing.T) {
	tree := newFileTree(nil, time.Now())
	check(t, tree.doCopy(t.Context(), cp("/", "/x"), dirView(deltaContext(t)), nil, nil))
	m := tree.manifest()
	m.diffID = oci.Digest("sha256:" + fmt.Sprintf("%064x", 7))
	dt := m.encode()
	again := parseFileManifest(dt)
	if diff := cmp.Diff(m, again, cmp.AllowUnexported(fileManifest{}, manifestEntry{})); diff != "" {
		t.Error(diff)
	}
	for _, n := range []int{0, 1, len(fileManifestMagic), len(dt) / 2, len(dt) - 1} {
		if parseFileManifest(dt[:n]) != nil {
			t.Errorf("%d of %d bytes are a manifest", n, len(dt))
		}
	}
}

func FuzzFileManifest(f *testing.F) {
	m := &fileManifest{diffID: oci.Digest("sha256:" + fmt.Sprintf("%064x", 7)), entries: []manifestEntry{{path: "a"}, {path: "a/b"}, {path: "c"}}}
	f.Add(m.encode())
	f.Fuzz(func(t *testing.T, dt []byte) {
		if m := parseFileManifest(dt); m != nil && m.since(m) == nil {
			t.Error("it is not what it is")
		}
	})
}
