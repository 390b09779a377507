package ops

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/lower"
	"den/internal/oci"
	"den/internal/snapshot"
	"den/internal/store"
	"den/internal/store/storetest"
	"den/internal/sys"
)

// What makes layers without a sandbox makes the same ones as images.
func TestTheSameInImageForm(t *testing.T) {
	storetest.AgainInImageForm(t, "^Test(Actions|Equal|Removals|Several|Uncommitted|Owners|CopyWithOwner|LinksBetween|Deltas|"+
		"Unpack|HostileArchives|ImportMakes|HardLinks|ContentOf|Merge|RecordOf|CacheAndCacheMounts|DownloadBecomes|GitSubmodulesAre)")
}

// imageEnv is an Env whose layers are images and whose owners are recorded.
func imageEnv(t *testing.T) *Env {
	t.Helper()
	st, err := store.Open(t.Context(), t.TempDir(), store.Options{EngineDir: t.TempDir(), UnsafeFS: true, Durability: "none", Image: true})
	check(t, err)
	t.Cleanup(func() { check(t, st.Close()) })
	return &Env{Store: st, Driver: snapshot.Images(), Recorded: true}
}

func imageRef(t *testing.T, env *Env, files ...testFile) *Ref {
	t.Helper()
	r, err := env.build(t.Context(), testTree(files...), "")
	check(t, err)
	t.Cleanup(func() { check(t, r.Close()) })
	return r
}

// A part of a layer that is no directory on disk is made for the step.
func TestPartsOfImagesAreMounted(t *testing.T) {
	env := imageEnv(t)
	r := imageRef(t, env, testFile{name: "d/"}, testFile{name: "d/f", content: "file", uid: 33, mode: 0o640}, testFile{name: "d/g/"}, testFile{name: "other", content: "x"},
		testFile{name: "link", link: "d/g/../f"})
	s := &step{execOp: &execOp{env: env}}
	t.Cleanup(func() { check(t, s.close()) })

	mnt, err := s.mountSelected(t.Context(), r, "/d", true)
	check(t, err)
	if mnt.Type != "overlay" || len(mnt.Lower) != 1 || mnt.Upper != "" {
		t.Errorf("part to read: %+v", mnt)
	}
	if got, want := tarText(t, mnt.Lower), "f -rw-r----- file\ng/ drwxr-xr-x\n"; got != want {
		t.Errorf("the part holds %q, want %q", got, want)
	}
	mnt, err = s.mountSelected(t.Context(), r, "d", false)
	check(t, err)
	if mnt.Type != "overlay" || len(mnt.Lower) != 1 || filepath.Base(mnt.Upper) != "image.erofs" {
		t.Errorf("part to write: %+v", mnt)
	}
	mnt, err = s.mountSelected(t.Context(), r, "/link", true)
	check(t, err)
	checkRecorded(t, mnt, "file", sys.Inode{Mode: unix.S_IFREG | 0o640, UID: 33})
	if _, err := s.mountSelected(t.Context(), r, "/nothing", true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing part: %v", err)
	}
	if _, err := s.mountSelected(t.Context(), nil, "/d", true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("part of nothing: %v", err)
	}
}

// checkRecorded checks the one file that is mounted.
func checkRecorded(t *testing.T, mnt oci.Mount, content string, want sys.Inode) {
	t.Helper()
	data, err := os.ReadFile(mnt.Source)
	if err != nil || string(data) != content || mnt.Type != "bind" {
		t.Errorf("%+v holds %q, %v", mnt, data, err)
	}
	d, err := lower.OpenRecorded(filepath.Dir(mnt.Source))
	check(t, err)
	defer d.Close()
	var st unix.Stat_t
	check(t, d.Stat(filepath.Base(mnt.Source), &st))
	if got := (sys.Inode{Mode: st.Mode, UID: st.Uid, GID: st.Gid}); got != want {
		t.Errorf("it should be %+v and is %+v", want, got)
	}
}

func TestSecretsAreSomebodysWhereNobodyMayChown(t *testing.T) {
	s := &step{execOp: &execOp{env: imageEnv(t)}}
	t.Cleanup(func() { check(t, s.close()) })
	mnt, err := s.fileMount(t.Context(), "/run/secrets/x", []byte("secret"), madeOwner{uid: 1000, gid: 7, mode: 0o400})
	check(t, err)
	checkRecorded(t, mnt, "secret", sys.Inode{Mode: unix.S_IFREG | 0o400, UID: 1000, GID: 7})
}

func TestCacheMountsBeginWithAPartOfAnImage(t *testing.T) {
	env := imageEnv(t)
	below := imageRef(t, env, testFile{name: "d/"}, testFile{name: "d/gone", content: "x"}, testFile{name: "d/f", content: "f", uid: 5})
	dir := t.TempDir()
	check(t, env.fill(context.Background(), dir, below, "/d"))
	if data, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(data) != "f" {
		t.Errorf("%q, %v", data, err)
	}
	if err := env.fill(context.Background(), t.TempDir(), below, "/d/f"); err == nil {
		t.Error("a file as a directory")
	}
}

// What one rung of a store made is found by the others, whatever form they keep trees in.
func TestRecordsOfKinAreHits(t *testing.T) {
	ctx := t.Context()
	for _, images := range []bool{false, true} {
		root := t.TempDir()
		here, there := formEnv(t, root, images), formEnv(t, root, !images)
		below := testRef(t, here, testFile{name: "d/"}, testFile{name: "d/f", content: "hello"})
		key := digest.FromString("key")
		_, err := NewCache(here.Store, here.Images).Save(ctx, key, []solver.Result{below}, false, 0, "RUN true")
		check(t, err)

		got, err := NewCache(there.Store, there.Images).Load(ctx, key)
		check(t, err)
		r := got[0].(*Ref)
		if !r.leases[0].unpacked() {
			t.Errorf("from images %t: a hit that is not in this form", images)
		}
		if c := content(t, r); c != "d/ drwxr-xr-x\nd/f -rw-r--r-- hello\n" {
			t.Errorf("from images %t:\n%s", images, c)
		}
		check(t, closeAll(got))
	}
}

// A base image of kin is not made anew before somebody reads it, and what lies on it is recorded.
func TestBasesOfKinAreMadeWhenTheyAreRead(t *testing.T) {
	ctx := t.Context()
	for _, images := range []bool{false, true} {
		root := t.TempDir()
		here, there := formEnv(t, root, images), formEnv(t, root, !images)
		layers := testRef(t, here, testFile{name: "f", content: "base"}).Layers()
		base, err := there.imageRef(ctx, &image.Image{Layers: layers}, imageAttrs{layers: -1}, "")
		check(t, err)
		defer base.Close()
		if op := (&imageOp{env: there, image: &image.Image{Layers: layers}}); op.Unseen(ctx) {
			t.Errorf("from images %t: it was never here", images)
		}
		r, err := there.build(ctx, testTree(testFile{name: "g", content: "top"}), "")
		check(t, err)
		defer r.Close()
		l, err := there.Store.Layer(ctx, r.Layers()[0].DiffID)
		check(t, err)
		both, err := there.push(ctx, base, r.Layers()[0], l, "")
		check(t, err)
		defer both.Close()
		if base.leases[0].unpacked() || !both.verified() {
			t.Errorf("from images %t: unpacked %t, to be recorded %t", images, base.leases[0].unpacked(), both.verified())
		}
		if c := content(t, both); c != "f -rw-r--r-- base\ng -rw-r--r-- top\n" {
			t.Errorf("from images %t:\n%s", images, c)
		}
	}
}

// A record of kin that does not give back its tar, as for who may not read all of it, is a miss.
func TestRecordsOfKinThatCannotBeReadAreMisses(t *testing.T) {
	ctx, root := t.Context(), t.TempDir()
	here, there := formEnv(t, root, false), formEnv(t, root, true)
	r := testRef(t, here, testFile{name: "f", content: "hello"})
	key := digest.FromString("key")
	_, err := NewCache(here.Store, here.Images).Save(ctx, key, []solver.Result{r}, false, 0, "RUN true")
	check(t, err)
	trees, err := r.Trees(ctx)
	check(t, err)
	check(t, os.Remove(filepath.Join(trees[0].Dirs()[0], "f")))
	if got, err := NewCache(there.Store, there.Images).Load(ctx, key); !errdefs.IsNotFound(err) {
		t.Errorf("%v, %v", got, err)
	}
}

// formEnv is an Env whose trees are images, or directories.
func formEnv(t *testing.T, root string, images bool) *Env {
	t.Helper()
	st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), UnsafeFS: true, Durability: "none", Image: images})
	check(t, err)
	t.Cleanup(func() { check(t, st.Close()) })
	return &Env{Store: st, Images: image.New(st, nil, image.Options{}), Recorded: images}
}
