package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/durable"
	"den/internal/oci"
)

// over opens a new store above bases.
func over(t testing.TB, bases ...*Store) *Store {
	t.Helper()
	var dirs []string
	for _, b := range bases {
		dirs = append(dirs, b.root)
	}
	s, err := overDirs(t, dirs...)
	must(t, err)
	return s
}

func overDirs(t testing.TB, dirs ...string) (*Store, error) {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "upper"), Options{
		EngineDir: t.TempDir(), Bases: dirs, Durability: durable.None, Notice: func(line string) { t.Log(line) },
	})
	if err == nil {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return s, err
}

// snapshotOf lists all names beneath a directory, with what a write would change.
func snapshotOf(t *testing.T, root string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		seen[path] = info.Mode().String() + " " + info.ModTime().Format(time.RFC3339Nano)
		return err
	}))
	return seen
}

func TestBaseServesInPlaceAndIsNotChanged(t *testing.T) {
	base := tempStore(t)
	blob, layer := putBlob(t, base, "bytes"), putLayer(t, base, "tree")
	key := digest.FromString("key")
	_, err := base.PutRecord(t.Context(), key, Record{Layers: []oci.Digest{layer}}, false)
	must(t, err)
	must(t, base.SetPulledRef(t.Context(), Ref{Name: "docker.io/library/a:1", Record: Record{Blobs: []oci.Digest{blob}}}))
	must(t, base.PutDerived("memo", []byte("value")))
	must(t, base.log.Sync())
	old := time.Now().Add(-100 * time.Hour)
	must(t, os.Chtimes(base.path(blobObject(blob).rel()), old, old))
	before := snapshotOf(t, base.root)

	s := over(t, base)
	b, err := s.Blob(t.Context(), blob)
	must(t, err)
	l, err := s.Layer(t.Context(), layer)
	must(t, err)
	if !strings.HasPrefix(l.Dirs()[0], base.root+"/") {
		t.Errorf("the layer of the base is at %s", l.Dirs()[0])
	}
	recs, err := s.Records(t.Context(), key)
	if err != nil || len(recs) != 1 {
		t.Fatalf("records: %v, %v", recs, err)
	}
	if r, err := s.PulledRef(t.Context(), "docker.io/library/a:1"); err != nil || r.Blobs[0] != blob {
		t.Errorf("pulled reference: %v, %v", r, err)
	}
	if refs, err := s.PulledRefs(t.Context()); err != nil || len(refs) != 1 {
		t.Errorf("pulled references: %v, %v", refs, err)
	}
	if err := s.DeletePulledRef(t.Context(), "docker.io/library/a:1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete a reference of the base: %v", err)
	}
	if v, err := s.Derived("memo"); err != nil || string(v) != "value" {
		t.Errorf("memo: %q, %v", v, err)
	}
	// An ingest finds it there, and a collection above leaves it.
	again, err := s.Ingest(t.Context(), Ingest{Digest: blob, SizeBytes: 5})
	must(t, err)
	must(t, errors.Join(again.Close(), b.Close(), l.Close()))
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	must(t, err)
	u, err := s.Usage(t.Context())
	must(t, err)
	if u.Blobs.Count+u.Layers.Count != 0 || len(u.Bases) != 1 || u.Bases[0].Blobs.Count != 1 || u.Bases[0].Layers.Count != 1 {
		t.Errorf("usage: %+v", u)
	}
	if diff := cmp.Diff(before, snapshotOf(t, base.root)); diff != "" {
		t.Errorf("the base has changed: %s", diff)
	}
}

func TestLeaseOnABaseKeepsItsCollectorAway(t *testing.T) {
	base := tempStore(t)
	blob, layer := putBlob(t, base, "bytes"), putLayer(t, base, "tree")
	s := over(t, base)
	b, err := s.Blob(t.Context(), blob)
	must(t, err)
	l, err := s.Layer(t.Context(), layer)
	must(t, err)
	_, err = base.Collect(t.Context())
	must(t, err)
	if !exists(base.path(blobObject(blob).rel())) || !exists(l.Dirs()[0]) {
		t.Error("the base's collector removed what is in use above")
	}
	must(t, errors.Join(b.Close(), l.Close()))
	_, err = base.Collect(t.Context())
	must(t, err)
	_, err = s.Blob(t.Context(), blob)
	mustBeGone(t, err)
	_, err = s.Layer(t.Context(), layer)
	mustBeGone(t, err)
}

func TestVanishedTreeBelowADeltaIsAMiss(t *testing.T) {
	base := tempStore(t)
	below := putLayer(t, base, "below")
	s := over(t, base)
	top := putLayer(t, s, "top", below)
	l, err := s.Layer(t.Context(), top)
	must(t, err)
	if dirs := l.Dirs(); len(dirs) != 2 || !strings.HasPrefix(dirs[1], base.root) {
		t.Errorf("trees at %v", dirs)
	}
	must(t, l.Close())
	mustBeSound(t, s)
	_, err = base.Collect(t.Context())
	must(t, err)
	if r, err := s.Verify(t.Context(), false); err != nil || !r.Clean() || len(r.Dangling) == 0 {
		t.Errorf("verify: %+v, %v", r, err)
	}
	_, err = s.Layer(t.Context(), top)
	mustBeGone(t, err)
}

func TestRecordsOfTheBaseComeAfterOnesOwn(t *testing.T) {
	one, two := tempStore(t), tempStore(t)
	key := digest.FromString("key")
	for i, st := range []*Store{one, two} {
		_, err := st.PutRecord(t.Context(), key, Record{Op: []string{"one", "two"}[i]}, false)
		must(t, err)
	}
	s := over(t, one, two)
	_, err := s.PutRecord(t.Context(), key, Record{Op: "own"}, false)
	must(t, err)
	recs, err := s.Records(t.Context(), key)
	must(t, err)
	var ops []string
	for _, r := range recs {
		ops = append(ops, r.Op)
	}
	if diff := cmp.Diff([]string{"own", "one", "two"}, ops); diff != "" {
		t.Error(diff)
	}
}

func TestWhatACrashMayHaveTornInABaseIsAMiss(t *testing.T) {
	base := tempStore(t)
	blob, sound := putBlob(t, base, "torn"), putBlob(t, base, "sound")
	key := digest.FromString("key")
	_, err := base.PutRecord(t.Context(), key, Record{}, false)
	must(t, err)
	must(t, base.log.Sync())
	// The machine was started again, and no writer has been here since.
	ours, err := readNames(base.path("sync"))
	must(t, err)
	for _, name := range ours {
		must(t, os.Rename(base.path("sync", name), base.path(name)))
		defer func() { must(t, os.Rename(base.path(name), base.path("sync", name))) }() // for the writer's end
	}
	now := base.path("sync", "before", "now")
	must(t, os.MkdirAll(now, 0o755))
	for _, rel := range []string{blobObject(blob).rel(), recordRel(key)} {
		must(t, os.WriteFile(filepath.Join(now, strings.ReplaceAll(rel, "/", "%")), nil, 0o644))
	}
	s := over(t, base)
	_, err = s.Blob(t.Context(), blob)
	mustBeGone(t, err)
	if recs, err := s.Records(t.Context(), key); err != nil || len(recs) != 0 {
		t.Errorf("records: %v, %v", recs, err)
	}
	b, err := s.Blob(t.Context(), sound)
	must(t, err)
	must(t, b.Close())
}

func TestTreesForOtherOwnersAreNotUsed(t *testing.T) {
	base := tempStore(t)
	layer, blob := putLayer(t, base, "tree"), putBlob(t, base, "bytes")
	s := over(t, base)
	s.bases[0].foreign = true
	_, err := s.Layer(t.Context(), layer)
	mustBeGone(t, err)
	b, err := s.Blob(t.Context(), blob)
	must(t, err)
	must(t, b.Close())
	if os.Geteuid() == 0 {
		must(t, os.Chown(base.path("layers", base.class), 12345, 12345))
		if !over(t, base).bases[0].foreign {
			t.Error("trees that another user made count as ours")
		}
	}
}

func TestUnusableBasesAreRefusedWithTheWayOut(t *testing.T) {
	base := tempStore(t)
	must(t, os.WriteFile(base.path(FormatFile), []byte(`{"format":1,"id":"x","incompat":["quantum"]}`), 0o644))
	_, err := overDirs(t, base.root)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "made by a newer den") || !strings.Contains(err.Error(), "--base-store") {
		t.Errorf("newer format: %v", err)
	}
	if _, err := overDirs(t, filepath.Join(t.TempDir(), "no")); err == nil || !strings.Contains(err.Error(), "--base-store") {
		t.Errorf("missing directory: %v", err)
	}
	root := filepath.Join(t.TempDir(), "self")
	if _, err := Open(t.Context(), root, Options{EngineDir: t.TempDir(), Bases: []string{root}, Durability: durable.None}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("the store as its own base: %v", err)
	}
	if s, err := overDirs(t, t.TempDir()); err != nil || len(s.Bases()) != 0 {
		t.Errorf("an empty directory: %v", err)
	}
}
