package ops

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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
