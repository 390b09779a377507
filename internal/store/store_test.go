package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/layer"
	"den/internal/oci"
)

// tempStore opens a new store with an engine of its own.
func tempStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "a [s]tore*"), t.TempDir()) // whose name is no pattern
}

func openStore(t testing.TB, root, engineDir string) *Store {
	t.Helper()
	return openWith(t, root, Options{EngineDir: engineDir})
}

func openWith(t testing.TB, root string, o Options) *Store {
	t.Helper()
	o.Notice = func(line string) { t.Log(line) }
	s, err := Open(context.Background(), root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A detached syncer would be at work while the directory is removed.
		if err := errors.Join(s.log.Sync(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func putBlob(t testing.TB, s *Store, text string) oci.Digest {
	t.Helper()
	b, err := s.PutBlob(t.Context(), strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	must(t, b.Close())
	return b.Digest()
}

// putLayer publishes a layer with one file and returns its diffID.
func putLayer(t testing.TB, s *Store, text string, over ...oci.Digest) oci.Digest {
	t.Helper()
	l, err := publishLayer(t.Context(), s, text, over...)
	if err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())
	return l.DiffID()
}

func publishLayer(ctx context.Context, s *Store, text string, over ...oci.Digest) (*Layer, error) {
	d, err := s.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	err = plantFile(ctx, d, text)
	var l *Layer
	if err == nil {
		l, err = d.Publish(ctx, LayerMeta{DiffID: digest.FromString("layer " + text), SizeBytes: int64(len(text)), Over: over})
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return l, nil
}

// plantFile makes a draft's tree, with one file.
func plantFile(ctx context.Context, d *Draft, text string) error {
	if !d.store.ImageForm() {
		return os.WriteFile(filepath.Join(d.FS(), "file"), []byte(text), 0o644)
	}
	f := layer.File{
		Entry: oci.Entry{Path: "file", Mode: unix.S_IFREG | 0o644, UID: 33, Size: int64(len(text)), Xattrs: map[string][]byte{"user.x": []byte("y")}},
		Open:  func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil },
	}
	files := func(yield func(layer.File, error) bool) { yield(f, nil) }
	return layer.Create(ctx, d.FS(), files, layer.UnpackOptions{Image: true})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustBeSound verifies the whole store, deeply. No name may dangle.
func mustBeSound(t testing.TB, s *Store) Report {
	t.Helper()
	r, err := s.Verify(t.Context(), true)
	must(t, err)
	if !r.Clean() || len(r.Dangling) > 0 {
		t.Errorf("verify: problems %v, dangling %v", r.Problems, r.Dangling)
	}
	return r
}

func mustBeGone(t *testing.T, err error) {
	t.Helper()
	if !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want a miss", err)
	}
}

func TestOpenMakesAStoreAndOpensItAgain(t *testing.T) {
	root, engine := filepath.Join(t.TempDir(), "a", "store"), t.TempDir()
	first := openStore(t, root, engine)
	d := putBlob(t, first, "hello")
	second := openStore(t, root, engine)
	b, err := second.Blob(t.Context(), d)
	must(t, err)
	must(t, b.Close())
	if first.EngineID() != second.EngineID() {
		t.Errorf("two commands of one job are the engines %s and %s", first.EngineID(), second.EngineID())
	}
	if other := openStore(t, root, t.TempDir()); other.EngineID() == first.EngineID() {
		t.Error("two jobs are one engine")
	}
}

func TestOpenLeavesTheProbesDirectoriesAlone(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, ".den-probe-1"), 0o755))
	s, err := Open(t.Context(), dir, Options{EngineDir: t.TempDir()})
	must(t, err)
	must(t, s.Close())
}

func TestOpenRefusesADirectoryThatIsNoStore(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o644))
	_, err := Open(t.Context(), dir, Options{EngineDir: t.TempDir()})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("got %v", err)
	}
	if exists(filepath.Join(dir, "blobs")) {
		t.Error("it was written to")
	}
}

func setFormat(t *testing.T, s *Store, f format) {
	t.Helper()
	data, err := json.Marshal(f)
	must(t, err)
	must(t, os.WriteFile(s.path(FormatFile), data, 0o644))
}

func TestUnknownIncompatFlagRefusesToOpen(t *testing.T) {
	s := tempStore(t)
	for _, f := range []format{{Format: 1, Incompat: []string{"sharded-blobs"}}, {Format: 2}} {
		setFormat(t, s, f)
		if _, err := Open(t.Context(), s.Root(), Options{EngineDir: t.TempDir()}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%+v: got %v", f, err)
		}
	}
}

// Old and new den share a store: what one does not know, it leaves alone.
func TestLayersOfALaterFormatAreIgnored(t *testing.T) {
	s := tempStore(t)
	l, err := publishLayer(t.Context(), s, "later")
	must(t, err)
	d := l.DiffID()
	must(t, l.Close())
	old := layerObject(s.class, layerID(s.class, d))
	later := layerObject(s.class, hexSum("den layer of another format"))
	must(t, os.MkdirAll(filepath.Dir(s.path(later.rel())), 0o755))
	must(t, os.Rename(s.path(old.rel()), s.path(later.rel())))
	meta := fmt.Appendf(nil, `{"format":"2","diffID":%q,"parts":["unknown"]}`, d)
	must(t, os.WriteFile(s.path(later.rel(), metaFile), meta, 0o644))

	if _, err := s.Layer(t.Context(), d); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want a miss", err)
	}
	r, err := s.Verify(t.Context(), true)
	must(t, err)
	if len(r.Problems) > 0 {
		t.Errorf("verify: %v", r.Problems)
	}
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	must(t, err)
	if !exists(s.path(later.rel(), fsDir, "file")) {
		t.Error("it was removed")
	}
	again, err := publishLayer(t.Context(), s, "later")
	must(t, err)
	must(t, again.Close())
}

func TestUnknownROCompatFlagOpensForReading(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "hello")
	setFormat(t, s, format{Format: 1, ROCompat: []string{"better-records"}})
	ro := openStore(t, s.Root(), t.TempDir())
	b, err := ro.Blob(t.Context(), d)
	must(t, err)
	must(t, b.Close())
	if _, err := ro.PutBlob(t.Context(), strings.NewReader("x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("writing: %v", err)
	}
	if _, err := ro.Collect(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("collecting: %v", err)
	}
}

func TestStoreOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to give a store away")
	}
	s := tempStore(t)
	if err := os.Chown(s.path(FormatFile), 12345, 12345); errors.Is(err, syscall.EINVAL) {
		t.Skip("needs uid 12345 in this user namespace")
	} else {
		must(t, err)
	}
	_, err := Open(t.Context(), s.Root(), Options{EngineDir: t.TempDir()})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "12345") {
		t.Errorf("got %v", err)
	}
}

func TestOpenDoesNotWriteOnceTheStoreIsThere(t *testing.T) {
	s := tempStore(t)
	must(t, s.log.Sync())
	before := listAll(t, s.Root())
	again := openStore(t, s.Root(), t.TempDir())
	if after := listAll(t, again.Root()); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func listAll(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		fmt.Fprintln(&b, path)
		return err
	}))
	return b.String()
}

func TestEngineIDSurvivesAReadOnlyHome(t *testing.T) {
	var notices []string
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "store"), Options{
		EngineDir: "/proc/den", // nobody can make it
		Notice:    func(line string) { notices = append(notices, line) },
	})
	must(t, err)
	defer s.Close()
	if s.EngineID() == "" || len(notices) == 0 {
		t.Errorf("engine %q, notices %q", s.EngineID(), notices)
	}
}

func TestEngineIsTheJobsOwnEvenIfTheStoreHasTheDefaultPlace(t *testing.T) {
	home, run := t.TempDir(), t.TempDir()
	for _, c := range []struct{ name, home, store, want string }{
		{"default store of a plain user", home, home + "/.local/share/den", home + "/.local/share/den-engine"},
		{"home in the store", home + "/store/home", home + "/store", run + "/den-engine"},
		{"no home", "", home + "/store2", run + "/den-engine"},
		{"home that cannot be written", "/proc", home + "/store3", run + "/den-engine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HOME", c.home)
			t.Setenv("XDG_DATA_HOME", "")
			t.Setenv("XDG_RUNTIME_DIR", run)
			s := &Store{root: c.store}
			must(t, os.MkdirAll(c.store, 0o755))
			got, err := s.defaultEngine(engineDirs(1000, os.Getenv))
			want, wantErr := readEngineID(filepath.Join(c.want, engineIDFile))
			if err != nil || wantErr != nil || got != want {
				t.Errorf("got %s, %v, want %s, %v", got, err, want, wantErr)
			}
		})
	}
	if root := engineDirs(0, func(string) string { return "" }); root[0] != "/var/lib/den-engine" {
		t.Errorf("root: %v", root)
	}
}

func TestVolumesAreSharedAndDisksAreNot(t *testing.T) {
	const root, volume, other = 1, 2, 3
	for _, c := range []struct {
		store, dir uint64
		contained  bool
		want       bool
	}{
		{volume, volume, true, true},
		{volume, volume, false, false}, // /home on a disk of its own
		{volume, root, true, false},
		{volume, other, true, false},
		{root, root, true, false}, // the container's own file system
		{0, 0, true, false},
	} {
		if got := sharesVolume(c.store, c.dir, root, c.contained); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestFileSystemsAreJudged(t *testing.T) {
	for fs, want := range map[string]place{
		"ext4": placeShared, "tmpfs": placeShared, "btrfs": placeShared,
		"nfs": placeRefused, "9p": placeRefused, "fuse": placeRefused,
		"overlay": placePrivate, "0x1234": placePrivate,
	} {
		if got := placeOf(fs); got != want {
			t.Errorf("%s: got %v, want %v", fs, got, want)
		}
	}
}

func TestOwnershipClassTellsMappingsApart(t *testing.T) {
	const identity = "0 0 4294967295"
	if got := classOf(identity, identity, 0, true); got != "0" {
		t.Errorf("root: %s", got)
	}
	if got := classOf(identity, identity, 0, false); got != "0r" {
		t.Errorf("root in a user namespace or without CAP_MKNOD: %s", got)
	}
	if got := classOf(identity, identity, 1000, false); got != "flatr" {
		t.Errorf("plain user: %s", got)
	}
	a, b := classOf("0 1000 1 1 100000 65536", identity, 0, false), classOf("0 1001 1 1 100000 65536", identity, 0, false)
	if a == b || a[0] != 'm' {
		t.Errorf("two mappings are %s and %s", a, b)
	}
}

func TestRecoveryServesNothingTorn(t *testing.T) {
	root, engine := filepath.Join(t.TempDir(), "store"), t.TempDir()
	s := openStore(t, root, engine)
	if s.log == nil || !exists(s.path("sync")) {
		t.Fatal("no epochs")
	}
	synced := putBlob(t, s, "synced")
	must(t, s.log.Sync())
	kept, torn, layer := putBlob(t, s, "kept"), putBlob(t, s, "torn"), putLayer(t, s, "layer")
	key := digest.FromString("key")
	_, err := s.PutRecord(t.Context(), key, Record{Layers: []oci.Digest{layer}}, false)
	must(t, err)
	must(t, s.SetRef(t.Context(), Ref{Name: "app:test", Record: Record{Blobs: []oci.Digest{kept}}}))
	must(t, s.SetRef(t.Context(), Ref{Name: "app:torn", Record: Record{Blobs: []oci.Digest{kept}}}))
	must(t, os.WriteFile(s.path("ingest", kept.Encoded()), []byte("zeros"), 0o644))

	// The power goes: two files lose their data, and the kernel is another.
	for _, path := range []string{s.path(blobObject(torn).rel()), s.path(s.refsFolder(), refFile("app:torn"))} {
		must(t, os.Chmod(path, 0o644))
		must(t, os.Truncate(path, 0))
	}
	if !crash(t, s) {
		t.Skip("needs epochs: the temporary directory is on a file system without")
	}

	after := openStore(t, root, engine)
	for _, d := range []oci.Digest{synced, kept} {
		b, err := after.Blob(t.Context(), d)
		must(t, err)
		must(t, b.Close())
	}
	_, err = after.Blob(t.Context(), torn)
	mustBeGone(t, err)
	_, err = after.Layer(t.Context(), layer)
	mustBeGone(t, err)
	if _, err := after.Ref(t.Context(), "app:test"); err != nil {
		t.Error(err)
	}
	_, err = after.Ref(t.Context(), "app:torn")
	mustBeGone(t, err)
	if exists(after.path("ingest", kept.Encoded())) {
		t.Error("a partial download outlived the crash")
	}
	if r, err := after.Verify(t.Context(), true); err != nil || !r.Clean() {
		t.Errorf("%v, %v", r.Problems, err)
	}
}

// crash makes what was not synced look like the work of another kernel. It
// reports whether there is such a thing.
func crash(t *testing.T, s *Store) bool {
	t.Helper()
	boots, err := readNames(s.path("sync"))
	must(t, err)
	if len(boots) != 1 {
		return false
	}
	must(t, os.Rename(s.path("sync", boots[0]), s.path("sync", "00000000-dead")))
	return true
}

func TestStrictStoreNeedsNoRecovery(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "store"), Options{EngineDir: t.TempDir(), Durability: durable.Strict})
	must(t, err)
	defer s.Close()
	d := putBlob(t, s, "hello")
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{d}}}))
	mustBeSound(t, s)
}

func TestUmaskDoesNotCloseTheRootOfALayer(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	s := tempStore(t)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	info, err := os.Stat(d.FS())
	must(t, err)
	if info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", info.Mode())
	}
}

// A delta whose epoch was over goes with the tree below it, whose epoch was not.
func TestRecoveryDropsDeltasOverWhatItDropped(t *testing.T) {
	root, engine := filepath.Join(t.TempDir(), "store"), t.TempDir()
	s := openStore(t, root, engine)
	below := putLayer(t, s, "below")
	top := putLayer(t, s, "top", below)
	marker := strings.ReplaceAll(layerObject(s.class, s.LayerID(top)).rel(), "/", "%")
	must(t, os.Remove(s.path("sync", s.boot, "now", marker)))
	if !crash(t, s) {
		t.Skip("needs epochs: the temporary directory is on a file system without")
	}
	after := openStore(t, root, engine)
	for _, d := range []oci.Digest{below, top} {
		if exists(after.path(layerObject(after.class, after.LayerID(d)).rel())) {
			t.Errorf("%s is there", d)
		}
	}
	mustBeSound(t, after)
}

// After a power cut the folders may be gone and the format file not.
func TestOpenMakesTheFoldersAgain(t *testing.T) {
	root, engine := filepath.Join(t.TempDir(), "store"), t.TempDir()
	s, err := Open(t.Context(), root, Options{EngineDir: engine, Durability: durable.None})
	must(t, err)
	must(t, s.Close())
	for _, dir := range folders {
		must(t, os.RemoveAll(filepath.Join(root, dir)))
	}
	putBlob(t, openStore(t, root, engine), "hello")
}

// What lies over nothing is damage only where something names it: the collector
// may be at work.
func TestVerifyForgivesAHollowLayerThatNothingNames(t *testing.T) {
	s := tempStore(t)
	below := putLayer(t, s, "below")
	top := putLayer(t, s, "top", below)
	must(t, os.RemoveAll(s.path(layerObject(s.class, s.LayerID(below)).rel())))
	r, err := s.Verify(t.Context(), false)
	must(t, err)
	if !r.Clean() || len(r.Dangling) != 1 {
		t.Errorf("unnamed: %v, dangling %v", r.Problems, r.Dangling)
	}
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Layers: []oci.Digest{top}}}))
	r, err = s.Verify(t.Context(), false)
	must(t, err)
	if len(r.Problems) != 1 {
		t.Errorf("named: %v", r.Problems)
	}
}
