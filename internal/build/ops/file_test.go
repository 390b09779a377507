package ops

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"

	"den/internal/build/llb"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/tree"
)

// chain makes actions that each take the one before; the copies read input 1.
func chain(inputs int, actions ...any) []*pb.FileAction {
	var out []*pb.FileAction
	for i, a := range actions {
		f := &pb.FileAction{Input: int64(inputs + i - 1), SecondaryInput: -1, Output: -1}
		if i == 0 {
			f.Input = 0
			if inputs == 0 {
				f.Input = -1
			}
		}
		if i == len(actions)-1 {
			f.Output = 0
		}
		switch x := a.(type) {
		case *pb.FileActionMkDir:
			f.Action = &pb.FileAction_Mkdir{Mkdir: x}
		case *pb.FileActionMkFile:
			f.Action = &pb.FileAction_Mkfile{Mkfile: x}
		case *pb.FileActionSymlink:
			f.Action = &pb.FileAction_Symlink{Symlink: x}
		case *pb.FileActionRm:
			f.Action = &pb.FileAction_Rm{Rm: x}
		case *pb.FileActionCopy:
			f.Action, f.SecondaryInput = &pb.FileAction_Copy{Copy: x}, int64(inputs-1)
		}
		out = append(out, f)
	}
	return out
}

func fileOpOf(t testing.TB, env *Env, inputs int, actions []*pb.FileAction) solver.Op {
	t.Helper()
	op, err := newFileOp(env, fileVertex(inputs, actions))
	check(t, err)
	return op
}

func fileVertex(inputs int, actions []*pb.FileAction) *llb.Vertex {
	return &llb.Vertex{
		Digest: "sha256:file", Inputs: make([]llb.Edge, inputs),
		Op: &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}},
	}
}

// runFile does actions and returns the outputs.
func runFile(t testing.TB, env *Env, inputs []solver.Result, actions []*pb.FileAction) ([]*Ref, error) {
	t.Helper()
	out, err := fileOpOf(t, env, len(inputs), actions).Exec(t.Context(), inputs, progress.Discard)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { check(t, closeAll(out)) })
	refs := make([]*Ref, len(out))
	for i, r := range out {
		refs[i] = r.(*Ref)
	}
	return refs, nil
}

func runFileOne(t testing.TB, env *Env, inputs []solver.Result, actions ...any) *Ref {
	t.Helper()
	out, err := runFile(t, env, inputs, chain(len(inputs), actions...))
	check(t, err)
	return out[0]
}

// localRef is a directory as a source op gives it.
func localRef(t testing.TB, env *Env, dir string, attrs map[string]string) *Ref {
	t.Helper()
	env.Locals = map[string]*Local{"context": {Dir: dir}}
	op, err := newLocalOp(env, sourceVertex("local://context", attrs))
	check(t, err)
	_, err = op.CacheMap(t.Context(), progress.Discard)
	check(t, err)
	out, err := op.Exec(t.Context(), nil, progress.Discard)
	check(t, err)
	t.Cleanup(func() { check(t, closeAll(out)) })
	return out[0].(*Ref)
}

// merged lists a Ref's files as a step would see them.
func merged(t testing.TB, r *Ref) string {
	t.Helper()
	fsys, done, err := r.FS(t.Context())
	check(t, err)
	defer done()
	var b strings.Builder
	check(t, tree.Walk(fsys, ".", func(e *oci.Entry) error {
		line := e.Path
		switch {
		case e.Path == ".":
			return nil
		case isDir(e):
			line += "/"
		}
		mode := goMode(e.Mode)
		switch {
		case isLink(e):
			line += " " + (mode | fs.ModeSymlink).String() + " -> " + e.Link
		case e.Hardlink:
			line += " = " + e.Link
		default:
			line += " " + mode.String()
		}
		if e.Size > 0 {
			line += " " + readAll(t, newTreeView(fsys), "/"+e.Path)
		}
		b.WriteString(line + "\n")
		return nil
	}))
	return b.String()
}

func mkdir(p string) *pb.FileActionMkDir {
	return &pb.FileActionMkDir{Path: p, Mode: 0o755, MakeParents: true, Timestamp: 0}
}

func mkfile(p, data string) *pb.FileActionMkFile {
	return &pb.FileActionMkFile{Path: p, Mode: 0o644, Data: []byte(data), Timestamp: 0}
}

func lines(s ...string) string { return strings.Join(s, "\n") + "\n" }

func TestActionsOnScratchMakeOneLayer(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	r := runFileOne(t, env, nil,
		mkdir("/a/b"), mkfile("a/file", "one"), &pb.FileActionSymlink{Oldpath: "..", Newpath: "/a/b/up", Timestamp: 0},
		mkfile("/a/b/up/two", "two"), &pb.FileActionRm{Path: "/a/file"},
		mkdir("/a/b"), &pb.FileActionMkDir{Path: "/flat", Mode: 0o700, Timestamp: 0},
	)
	want := lines("a/ drwxr-xr-x", "a/b/ drwxr-xr-x", "a/b/up Lrwxrwxrwx -> ..", "a/two -rw-r--r-- two", "flat/ drwx------")
	if diff := cmp.Diff(want, merged(t, r)); diff != "" {
		t.Error(diff)
	}
	if n := len(r.Layers()); n != 1 {
		t.Errorf("%d layers", n)
	}
}

func TestEqualActionsMakeEqualLayersInTwoStores(t *testing.T) {
	needRoot(t)
	dir := plant(t, t.TempDir(), "a", "d/b", "link -> a", "hard = a")
	old(t, dir)
	var ids []oci.Digest
	for range 2 {
		env := storeEnv(t, t.TempDir())
		ctx := localRef(t, env, dir, nil)
		r := runFileOne(t, env, []solver.Result{nil, ctx}, mkfile("/x", "1"), cp("/", "/x2/", func(a *pb.FileActionCopy) { a.Timestamp = 0 }))
		ids = append(ids, r.ID())
	}
	if ids[0] != ids[1] {
		t.Errorf("%s and %s", ids[0], ids[1])
	}
}

func TestRemovalsHideWhatLiesBelow(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	base := testRef(t, env,
		testFile{name: "gone/"}, testFile{name: "gone/x", content: "x"}, testFile{name: "keep/"}, testFile{name: "keep/a", content: "a"},
		testFile{name: "keep/b", content: "b"}, testFile{name: "new/"}, testFile{name: "new/x", content: "x"}, testFile{name: "link", link: "keep"})
	r := runFileOne(t, env, []solver.Result{base},
		&pb.FileActionRm{Path: "/gone"}, &pb.FileActionRm{Path: "/link/a"},
		&pb.FileActionRm{Path: "/new"}, mkdir("/new"), mkfile("/new/y", "y"),
		&pb.FileActionRm{Path: "/n*/none*", AllowWildcard: true}, &pb.FileActionRm{Path: "/none", AllowNotFound: true},
	)
	want := lines("keep/ drwxr-xr-x", "keep/b -rw-r--r-- b", "link Lrwxrwxrwx -> keep", "new/ drwxr-xr-x", "new/y -rw-r--r-- y")
	if diff := cmp.Diff(want, merged(t, r)); diff != "" {
		t.Error(diff)
	}
	if _, err := runFile(t, env, []solver.Result{base}, chain(1, &pb.FileActionRm{Path: "/none"})); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := runFile(t, env, []solver.Result{base}, chain(1, &pb.FileActionRm{Path: "/"})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestLayerHoldsParentsAsTheyAreBelow(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	base := testRef(t, env, testFile{name: "usr/", mode: 0o711}, testFile{name: "usr/share/", mode: 0o750}, testFile{name: "usr/other", content: "x"})
	r := runFileOne(t, env, []solver.Result{base}, mkfile("/usr/share/file", "f"))
	trees, err := r.Trees(t.Context())
	check(t, err)
	var got []string
	check(t, filepath.WalkDir(trees[1].Dirs()[0], func(p string, d fs.DirEntry, err error) error {
		check(t, err)
		info, err := d.Info()
		check(t, err)
		rel, err := filepath.Rel(trees[1].Dirs()[0], p)
		check(t, err)
		if rel != "." {
			got = append(got, rel+" "+info.Mode().String()+" "+info.ModTime().UTC().Format("2006"))
		}
		return nil
	}))
	want := []string{"usr drwx--x--x 2023", "usr/share drwxr-x--- 2023", "usr/share/file -rw-r--r-- 1970"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFailuresAreBuildKits(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	base := testRef(t, env, testFile{name: "dir/"}, testFile{name: "file", content: "x"})
	for _, c := range []struct {
		action any
		want   error
	}{
		{mkfile("/dir", "x"), fs.ErrInvalid},
		{mkfile("/", "x"), fs.ErrInvalid},
		{mkfile("/none/x", "x"), fs.ErrNotExist},
		{mkfile("/file/x", "x"), fs.ErrInvalid},
		{&pb.FileActionMkDir{Path: "/none/x", Mode: 0o755}, fs.ErrNotExist},
		{&pb.FileActionMkDir{Path: "/file/x", Mode: 0o755, MakeParents: true}, fs.ErrInvalid},
		{&pb.FileActionSymlink{Oldpath: "x", Newpath: "/file"}, fs.ErrExist},
		{&pb.FileActionSymlink{Oldpath: "x", Newpath: "/none/x"}, fs.ErrNotExist},
	} {
		_, err := runFile(t, env, []solver.Result{base}, chain(1, c.action))
		var perr *fs.PathError
		switch {
		case err == nil:
			t.Errorf("%v: no error", c.action)
		case c.want != fs.ErrInvalid && !errors.Is(err, c.want), !errors.As(err, &perr):
			t.Errorf("%v: got %v", c.action, err)
		}
	}
}

func TestSixteenMebibytesInOneMkfile(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	r := runFileOne(t, env, nil, mkfile("/big", strings.Repeat("x", 16<<20)))
	if n := r.Layers()[0].SizeBytes; n < 16<<20 {
		t.Errorf("%d bytes", n)
	}
}

func TestSeveralOutputsShareWhatTheyHaveInCommon(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	out, err := runFile(t, env, nil, []*pb.FileAction{
		{Input: -1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkfile{Mkfile: mkfile("/common", "c")}},
		{Input: 0, SecondaryInput: -1, Output: 1, Action: &pb.FileAction_Mkfile{Mkfile: mkfile("/one", "1")}},
		{Input: 0, SecondaryInput: 1, Output: 0, Action: &pb.FileAction_Copy{Copy: cp("/one", "/copied")}},
	})
	check(t, err)
	if diff := cmp.Diff(lines("common -rw-r--r-- c", "copied -rw-r--r-- 1"), merged(t, out[0])); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(lines("common -rw-r--r-- c", "one -rw-r--r-- 1"), merged(t, out[1])); diff != "" {
		t.Error(diff)
	}
	if out[0].Layers()[0].DiffID != out[1].Layers()[0].DiffID {
		t.Error("the common part was made twice")
	}
}

func TestUncommittedResultIsASource(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	out, err := runFile(t, env, nil, []*pb.FileAction{
		{Input: -1, SecondaryInput: 1, Output: 0, Action: &pb.FileAction_Copy{Copy: cp("/d", "/e")}},
		{Input: -1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkdir{Mkdir: mkdir("/x")}},
	})
	if err == nil {
		t.Fatalf("%v: a directory that is not there was copied", out)
	}
	out, err = runFile(t, env, nil, []*pb.FileAction{
		{Input: -1, SecondaryInput: 2, Output: 0, Action: &pb.FileAction_Copy{Copy: cp("/d", "/e")}},
		{Input: -1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkdir{Mkdir: mkdir("/d")}},
		{Input: 1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Mkfile{Mkfile: mkfile("/d/f", "f")}},
	})
	check(t, err)
	if diff := cmp.Diff(lines("e/ drwxr-xr-x", "e/f -rw-r--r-- f"), merged(t, out[0])); diff != "" {
		t.Error(diff)
	}
}

func TestActionsThatMakeNoSenseAreRefused(t *testing.T) {
	mk := func(in, second, out int64) *pb.FileAction {
		return &pb.FileAction{Input: in, SecondaryInput: second, Output: out, Action: &pb.FileAction_Mkfile{Mkfile: mkfile("/x", "")}}
	}
	byName := mk(-1, -1, 0)
	byName.GetMkfile().Owner = &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "x", Input: 7}}}}
	for name, actions := range map[string][]*pb.FileAction{
		"none":               nil,
		"no output":          {mk(-1, -1, -1)},
		"input out of range": {mk(5, -1, 0)},
		"negative input":     {mk(-2, -1, 0)},
		"second input":       {mk(-1, 9, 0)},
		"output twice":       {mk(-1, -1, 0), mk(0, -1, 0)},
		"output missing":     {mk(-1, -1, 1)},
		"empty action":       {{Input: -1, SecondaryInput: -1}},
		"user of nowhere":    {byName},
		"itself":             {mk(0, -1, 0)},
		"circle":             {mk(1, -1, 0), mk(0, -1, -1)},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := newFileOp(storeEnv(t, t.TempDir()), fileVertex(0, actions))
			if err == nil {
				_, err = op.Exec(t.Context(), nil, progress.Discard)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOwnersByNameComeFromTheTree(t *testing.T) {
	needRoot(t)
	env := storeEnv(t, t.TempDir())
	base := testRef(t, env, testFile{name: "etc/"},
		testFile{name: "etc/passwd", link: "../lib/passwd"}, testFile{name: "lib/"},
		testFile{name: "lib/passwd", content: "root:x:0:0::/:\nweb:x:33:34:w:/:/bin/sh\n"},
		testFile{name: "etc/group", content: "root:x:0:\nstaff:x:50:web\n"})
	owner := func(user, group string) *pb.ChownOpt {
		o := &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: user}}}}
		if group != "" {
			o.Group = &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: group}}}
		}
		return o
	}
	for _, c := range []struct {
		owner *pb.ChownOpt
		want  fileOwner
	}{
		{owner("web", ""), fileOwner{33, 34}},
		{owner("web", "staff"), fileOwner{33, 50}},
		{owner("nobody", "nothing"), fileOwner{0, 0}},
		{&pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 7}}}, fileOwner{7, 7}},
		{&pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 7}}, Group: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 8}}}, fileOwner{7, 8}},
		{&pb.ChownOpt{Group: owner("x", "staff").Group}, fileOwner{0, 50}},
	} {
		f := mkfile("/x", "x")
		f.Owner = c.owner
		r := runFileOne(t, env, []solver.Result{base}, f)
		fsys, done, err := r.FS(t.Context())
		check(t, err)
		e, err := fsys.Lstat("x")
		check(t, err)
		if got := (fileOwner{e.UID, e.GID}); got != c.want {
			t.Errorf("%v: got %v, want %v", c.owner, got, c.want)
		}
		done()
	}
}

func TestFailedActionLeavesNothingInTheStore(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	env := storeEnv(t, root)
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "a.tar"), tarOf(t, &tar.Header{Name: "ok"}, &tar.Header{Name: "../out"}), 0o644))
	ctx := localRef(t, env, dir, nil)
	if _, err := runFile(t, env, []solver.Result{nil, ctx}, chain(2, cp("/a.tar", "/", unpacked))); err == nil {
		t.Fatal("no error")
	}
	for _, sub := range []string{"tmp", "layers"} {
		check(t, filepath.WalkDir(filepath.Join(root, sub), func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("left: %s", p)
			}
			return nil
		}))
	}
}

func TestKeyOfACopyIsItsContent(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	dir := plant(t, t.TempDir(), "app/a", "app/b", "other")
	key := func(inputs ...solver.Result) (oci.Digest, oci.Digest) {
		t.Helper()
		op := fileOpOf(t, env, 2, chain(2, cp("/app", "/x")))
		cm, err := op.CacheMap(t.Context(), progress.Discard)
		check(t, err)
		if cm.Inputs[0].Content != nil || cm.Inputs[0].Selector != "" {
			t.Error("the base counts by its content")
		}
		sum, err := cm.Inputs[1].Content(t.Context(), inputs[1])
		check(t, err)
		return cm.Digest, sum
	}
	def, before := key(nil, localRef(t, env, dir, nil))
	check(t, os.WriteFile(filepath.Join(dir, "other"), []byte("changed"), 0o644))
	if _, after := key(nil, localRef(t, env, dir, nil)); after != before {
		t.Error("a file that is not copied changes the key")
	}
	check(t, os.WriteFile(filepath.Join(dir, "app/b"), []byte("changed"), 0o644))
	if def2, after := key(nil, localRef(t, env, dir, nil)); after == before || def2 != def {
		t.Error("a file that is copied does not change the key, or the definition does")
	}
}

// Each of these pairs differs only in which path is copied when; the digests of
// the same directory have to tell them apart.
func TestCopiesThatChangePlacesAreNotOne(t *testing.T) {
	env := storeEnv(t, t.TempDir())
	dir := plant(t, t.TempDir(), "a/f", "b/f", "c/a/f", "c/b/f", "z/f", "c/link -> ../z")
	ctx := localRef(t, env, dir, nil)
	type key struct {
		op, content oci.Digest
		selector    string
	}
	keyOf := func(actions ...any) key {
		t.Helper()
		cm, err := fileOpOf(t, env, 2, chain(2, actions...)).CacheMap(t.Context(), progress.Discard)
		check(t, err)
		sum, err := cm.Inputs[1].Content(t.Context(), ctx)
		check(t, err)
		return key{cm.Digest, sum, cm.Inputs[1].Selector}
	}
	for _, pair := range [][2][]string{
		{{"/a/f", "/b/f"}, {"/b/f", "/a/f"}},
		{{"/c", "/c/a/f"}, {"/c", "/c/b/f"}},
		{{"/c/a/f", "/c"}, {"/c", "/c/a/f"}},
	} {
		one := keyOf(cp(pair[0][0], "/x/"), cp(pair[0][1], "/x/"))
		two := keyOf(cp(pair[1][0], "/x/"), cp(pair[1][1], "/x/"))
		if one.op == two.op && (one.content == two.content || one.selector == two.selector) {
			t.Errorf("%q and %q have the same keys", pair[0], pair[1])
		}
	}
	before := keyOf(cp("/c", "/x/"), cp("/c/link/f", "/y/"))
	check(t, os.WriteFile(filepath.Join(dir, "z/f"), []byte("changed"), 0o644))
	ctx = localRef(t, env, dir, nil)
	if keyOf(cp("/c", "/x/"), cp("/c/link/f", "/y/")) == before {
		t.Error("a file behind a link below another copied path changed nothing")
	}
}

// TestDefinitionKeysDoNotDrift has the keys that solver/llbsolver/ops of
// BuildKit v0.33.1 computes. They may only change on purpose: everybody's cache
// is lost with them.
func TestDefinitionKeysDoNotDrift(t *testing.T) {
	owner := &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "web", Input: 0}}}}
	withOwner := cp("a/b/c.txt", "/x")
	withOwner.Owner = owner
	got := map[string]oci.Digest{}
	for name, actions := range map[string][]*pb.FileAction{
		"copy":    chain(2, cp("/some/where/app", "/x")),
		"copies":  chain(2, cp("/a", "/x/"), cp("/b", "/x/")),
		"owner":   chain(2, withOwner),
		"mkdir":   chain(1, mkdir("/work")),
		"mkfile":  chain(0, mkfile("/f", "data")),
		"rm":      chain(1, &pb.FileActionRm{Path: "/x", AllowWildcard: true}),
		"symlink": chain(1, &pb.FileActionSymlink{Oldpath: "a", Newpath: "b"}),
	} {
		cm, err := fileOpOf(t, nil, map[bool]int{true: 2, false: 1}[strings.Contains("copies owner copy", name)], actions).CacheMap(t.Context(), progress.Discard)
		check(t, err)
		got[name] = cm.Digest
	}
	golden := filepath.Join("testdata", "file_keys.json")
	data, err := os.ReadFile(golden)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = json.MarshalIndent(got, "", "\t")
		check(t, err)
		check(t, os.MkdirAll("testdata", 0o755))
		check(t, os.WriteFile(golden, append(data, '\n'), 0o644))
		t.Fatalf("%s did not exist and was written", golden)
	}
	check(t, err)
	want := map[string]oci.Digest{}
	check(t, json.Unmarshal(data, &want))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
