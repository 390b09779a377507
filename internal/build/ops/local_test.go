package ops

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/solver"
	"den/internal/progress"
)

func TestLocalSourceIsItsContent(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	dir := plant(t, t.TempDir(), "a", "skip/b", "app/c")
	attrs := map[string]string{
		pb.AttrExcludePatterns: `["skip"]`, pb.AttrLocalSessionID: "whatever", pb.AttrLocalUniqueID: "u", pb.AttrSharedKeyHint: "context",
	}
	env.Locals = map[string]*Local{"context": {Dir: dir}}
	key := func() string {
		op, err := newLocalOp(env, sourceVertex("local://context", attrs))
		check(t, err)
		cm, err := op.CacheMap(t.Context(), progress.Discard)
		check(t, err)
		if !cm.NoRecord {
			t.Error("a directory of the user's is recorded")
		}
		return string(cm.Digest)
	}
	before := key()
	check(t, os.WriteFile(filepath.Join(dir, "skip/b"), []byte("other"), 0o644))
	attrs[pb.AttrLocalUniqueID] = "another"
	if key() != before {
		t.Error("what is left out, or a session, changes the key")
	}
	check(t, os.WriteFile(filepath.Join(dir, "a"), []byte("other"), 0o644))
	if key() == before {
		t.Error("a changed file does not change the key")
	}
	if diff := cmp.Diff(lines("a -rw-r--r-- other", "app/ drwxr-xr-x", "app/c -rw-r--r-- content of app/c"), merged(t, localRef(t, env, dir, attrs))); diff != "" {
		t.Error(diff)
	}
}

func TestLocalSourceReportsWhatItReads(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	env.Locals = map[string]*Local{"context": {Dir: plant(t, t.TempDir(), "a")}}
	op, err := newLocalOp(env, sourceVertex("local://context", nil))
	check(t, err)
	var last *progress.Status
	_, err = op.CacheMap(t.Context(), progress.Func(func(e progress.Event) { last = e.Status }))
	check(t, err)
	if last == nil || last.Completed == nil || last.Current != int64(len("content of a")) {
		t.Errorf("%+v", last)
	}
}

func TestLocalSourceThatCannotBeRead(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	env.Locals = map[string]*Local{
		"context": {Dir: filepath.Join(t.TempDir(), "missing")}, "file": {Dir: filepath.Join(plant(t, t.TempDir(), "f"), "f")}, "ok": {Dir: t.TempDir()},
	}
	for _, c := range []struct {
		id    string
		attrs map[string]string
		is    func(error) bool
	}{
		{"local://context", nil, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		{"local://file", nil, func(err error) bool { return err != nil }},
		{"local://unknown", nil, errdefs.IsNotFound},
		{"local://ok", map[string]string{pb.AttrIncludePatterns: "{"}, errdefs.IsInvalidArgument},
		{"local://ok", map[string]string{pb.AttrExcludePatterns: `["["]`}, errdefs.IsInvalidArgument},
		{"local://ok", map[string]string{"local.new": "x"}, errdefs.IsInvalidArgument},
		{"local://ok", map[string]string{pb.AttrMetadataTransfer: "true"}, errdefs.IsNotImplemented},
	} {
		op, err := newLocalOp(env, sourceVertex(c.id, c.attrs))
		if err == nil {
			_, err = op.CacheMap(t.Context(), progress.Discard)
		}
		if !c.is(err) {
			t.Errorf("%s %v: got %v", c.id, c.attrs, err)
		}
	}
}

func TestFileChangedAfterTheWalkIsAnError(t *testing.T) {
	needRoot(t)
	for name, change := range map[string]func(p string) error{
		"longer":   func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("x", 100)), 0o644) },
		"shorter":  func(p string) error { return os.Truncate(p, 1) },
		"same":     func(p string) error { return os.WriteFile(p, []byte("CONTENT OF a"), 0o644) },
		"gone":     os.Remove,
		"replaced": func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) },
	} {
		t.Run(name, func(t *testing.T) {
			env := storeEnv(t, t.TempDir())
			dir := plant(t, t.TempDir(), "a", "b")
			ctx := localRef(t, env, dir, nil)
			tick(t)
			check(t, change(filepath.Join(dir, "a")))
			_, err := runFile(t, env, []solver.Result{nil, ctx}, chain(2, cp("/", "/x")))
			if err == nil || name != "gone" && name != "replaced" && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("got %v", err)
			}
			if _, _, err := ctx.Local().Import(t.Context()); err == nil {
				t.Error("it was imported")
			}
		})
	}
}

func TestFileChangedWithinOneTickIsAnError(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	dir := plant(t, t.TempDir(), "a")
	ctx := localRef(t, env, dir, nil)
	local := ctx.Local().(*localTree)
	p := filepath.Join(dir, "a")
	check(t, os.WriteFile(p, []byte("CONTENT OF a"), 0o644))
	// The file's times did not move, as the kernel's clock may not have.
	again, err := walkLocal(t.Context(), dir, localFilter{}, nil)
	check(t, err)
	local.root.children[0].stat = again.children[0].stat
	f, err := local.open()
	check(t, err)
	defer f.Close()
	r, err := f.Open("a")
	check(t, err)
	defer r.Close()
	if _, err := io.ReadAll(r); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

func TestImportMakesOneLayerOnce(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	dir := plant(t, t.TempDir(), "a", "d/b", "d/hard = a", "link -> a")
	check(t, os.Chtimes(filepath.Join(dir, "a"), time.Unix(1, 0), time.Unix(1, 0)))
	one := localRef(t, env, dir, nil)
	before := merged(t, one)
	trees, err := one.Trees(t.Context())
	check(t, err)
	if one.Local() != nil || len(one.Layers()) != 1 || len(trees) != 1 {
		t.Error("it is no layer")
	}
	before = strings.Replace(before, "d/hard -rw-r--r-- content of a", "d/hard = a", 1) // a view of files does not tell
	if diff := cmp.Diff(before, merged(t, one)); diff != "" {
		t.Error(diff)
	}
	two := localRef(t, env, dir, nil)
	again, err := two.Trees(t.Context())
	check(t, err)
	if again[0].Dirs()[0] != trees[0].Dirs()[0] {
		t.Error("it was copied twice")
	}
}

func TestHardLinksSurviveAllTheWay(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	dir := plant(t, t.TempDir(), "d/a", "d/sub/b = d/a", "d/c", "other = d/c")
	one := runFileOne(t, env, []solver.Result{nil, localRef(t, env, dir, nil)}, cp("/d", "/x"))
	two := runFileOne(t, env, []solver.Result{nil, one}, cp("/x", "/y"))
	want := lines("y/ drwxr-xr-x", "y/a -rw-r--r-- content of d/a", "y/c -rw-r--r-- content of d/c", "y/sub/ drwxr-xr-x", "y/sub/b = y/a")
	if diff := cmp.Diff(want, merged(t, two)); diff != "" {
		t.Error(diff)
	}
}

func TestContentOfLayersIsContentOfTheDirectory(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	dir := contentContext(t)
	local := localRef(t, env, dir, nil)
	layer := runFileOne(t, env, []solver.Result{nil, local}, cp("/", "/"))
	for _, sel := range contentSelectors {
		want, werr := contentHash(t.Context(), env, local, []Selector{sel})
		for range 2 { // computed, and remembered
			got, err := contentHash(t.Context(), env, layer, []Selector{sel})
			if (err == nil) != (werr == nil) || got != want {
				t.Errorf("%+v: got %s %v, want %s %v", sel, got, err, want, werr)
			}
		}
	}
}
