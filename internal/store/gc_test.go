package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

func collect(t testing.TB, s *Store) int64 {
	t.Helper()
	n, err := s.Collect(t.Context())
	must(t, err)
	return n
}

func hasBlob(t *testing.T, s *Store, d oci.Digest) bool {
	t.Helper()
	return exists(s.path(blobObject(d).rel()))
}

func hasLayer(t *testing.T, s *Store, d oci.Digest) bool {
	t.Helper()
	return exists(s.path(layerObject(s.class, s.LayerID(d)).rel()))
}

func TestCollectorRemovesWhatNothingNames(t *testing.T) {
	s := tempStore(t)
	blob, layer := putBlob(t, s, "hello"), putLayer(t, s, "layer")
	if freed := collect(t, s); freed != int64(len("hello")+len("layer")) {
		t.Errorf("freed %d", freed)
	}
	if hasBlob(t, s, blob) || hasLayer(t, s, layer) {
		t.Error("still there")
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestCollectorKeepsWhatIsNamed(t *testing.T) {
	s := tempStore(t)
	other := openStore(t, s.Root(), t.TempDir())
	var blobs, layers []oci.Digest
	put := func(text string) Record {
		blobs, layers = append(blobs, putBlob(t, s, text)), append(layers, putLayer(t, s, text))
		return Record{Blobs: blobs[len(blobs)-1:], Layers: layers[len(layers)-1:]}
	}
	must(t, s.SetRef(t.Context(), Ref{Name: "own", Record: put("own")}))
	must(t, other.SetRef(t.Context(), Ref{Name: "other engine's", Record: put("other")}))
	must(t, s.SetPulledRef(t.Context(), Ref{Name: "pulled", Record: put("pulled")}))
	_, err := s.PutRecord(t.Context(), digest.FromString("key"), put("record"), false)
	must(t, err)
	c, err := other.NewContainer(t.Context(), testCID)
	must(t, err)
	must(t, c.SetRoots(put("container")))
	must(t, c.Close())
	collect(t, s)
	for i := range blobs {
		if !hasBlob(t, s, blobs[i]) || !hasLayer(t, s, layers[i]) {
			t.Errorf("object %d is gone", i)
		}
	}
	mustBeSound(t, s)
}

func TestCollectorKeepsTheTreesBelowADelta(t *testing.T) {
	s := tempStore(t)
	below := putLayer(t, s, "below")
	top := putLayer(t, s, "top", below)
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Layers: []oci.Digest{top}}}))
	collect(t, s)
	if !hasLayer(t, s, below) {
		t.Error("the tree below is gone")
	}
	must(t, s.DeleteRef(t.Context(), "app"))
	collect(t, s)
	if hasLayer(t, s, below) || hasLayer(t, s, top) {
		t.Error("still there")
	}
}

func TestCollectorLeavesLeasedObjectsAlone(t *testing.T) {
	s := tempStore(t)
	collector := openStore(t, s.Root(), t.TempDir())
	l, err := publishLayer(t.Context(), s, "layer", putLayer(t, s, "below"))
	must(t, err)
	collect(t, collector)
	for _, dir := range l.Dirs() {
		if !exists(dir) {
			t.Errorf("%s is gone", dir)
		}
	}
	must(t, l.Close())
	collect(t, collector)
	if exists(l.Dirs()[0]) {
		t.Error("still there")
	}
}

// The heart of the protocol: an object that is used, and released again,
// between the collector's steps is not condemned any more.
func TestObjectUsedBetweenCondemnAndSweepStays(t *testing.T) {
	s := tempStore(t)
	used, unused := putBlob(t, s, "used"), putBlob(t, s, "unused")
	c := &collection{store: s, token: "run"}
	must(t, c.condemn(t.Context()))
	if len(c.condemned) != 2 {
		t.Fatalf("condemned: %v", c.condemned)
	}
	live, err := s.mark(t.Context())
	must(t, err)
	b, err := s.Blob(t.Context(), used)
	must(t, err)
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{used}}}))
	must(t, b.Close())
	must(t, c.sweep(t.Context(), live))
	if !hasBlob(t, s, used) || hasBlob(t, s, unused) {
		t.Errorf("used: %v, unused: %v; want true, false", hasBlob(t, s, used), hasBlob(t, s, unused))
	}
	mustBeSound(t, s)
}

func TestFlagOfAnotherRunDoesNotCount(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "hello")
	c := &collection{store: s, token: "run"}
	must(t, c.condemn(t.Context()))
	other := &collection{store: s, token: "other"}
	must(t, other.flag(blobObject(d)))
	must(t, c.sweep(t.Context(), nil))
	if !hasBlob(t, s, d) {
		t.Error("swept under another run's flag")
	}
}

func TestCollectorReapsTheDeadAndNotTheLiving(t *testing.T) {
	s := tempStore(t)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	w, err := s.Work(t.Context(), "test", "key", nil)
	must(t, err)
	defer w.Done()
	must(t, os.MkdirAll(s.path("tmp", "dead", fsDir), 0o755))
	must(t, os.WriteFile(s.path("tmp", "dead-file"), nil, 0o644))
	must(t, os.WriteFile(s.path("work", "test-dead"), nil, 0o644))
	must(t, os.MkdirAll(s.path("trash", "dead", "a"), 0o755))
	must(t, os.Symlink("run", s.path("condemned", "blob-dead")))
	must(t, os.MkdirAll(s.path(probePrefix+"dead", "w", "work"), 0o755))
	age(t, s.path(probePrefix+"dead"), 2*probeLife)
	must(t, os.Mkdir(s.path(probePrefix+"alive"), 0o755))
	collect(t, s)
	if exists(s.path(probePrefix+"dead")) || !exists(s.path(probePrefix+"alive")) {
		t.Error("the probe that is alive is gone, or the dead one is not")
	}
	r := mustBeSound(t, s)
	want := []string{"tmp/" + filepath.Base(d.path), "work/test-key"}
	if diff := cmp.Diff(want, r.Leftovers); diff != "" {
		t.Error(diff)
	}
}

// age makes what is at path look unused for so long.
func age(t *testing.T, path string, d time.Duration) {
	t.Helper()
	then := time.Now().Add(-d)
	must(t, os.Chtimes(path, then, then))
}

func putRecord(t *testing.T, s *Store, key, layer string) oci.Digest {
	t.Helper()
	k := digest.FromString(key)
	_, err := s.PutRecord(t.Context(), k, Record{Layers: []oci.Digest{putLayer(t, s, layer)}, Op: key}, false)
	must(t, err)
	return k
}

func TestPruneKeepsWhatWasUsedLately(t *testing.T) {
	s := tempStore(t)
	old, young := putRecord(t, s, "old", "a"), putRecord(t, s, "young", "b")
	age(t, s.recordPath(old), 48*time.Hour)
	freed, err := s.Prune(t.Context(), PruneOptions{Until: 24 * time.Hour})
	must(t, err)
	if freed != 1 {
		t.Errorf("freed %d", freed)
	}
	_, err = s.Record(t.Context(), old)
	mustBeGone(t, err)
	if _, err := s.Record(t.Context(), young); err != nil {
		t.Error(err)
	}
	mustBeSound(t, s)
}

func TestPruneStopsAtWhatIsToBeKept(t *testing.T) {
	s := tempStore(t)
	// The layer of a and b goes only when both have gone.
	a, b, c := putRecord(t, s, "a", "12345"), putRecord(t, s, "b", "12345"), putRecord(t, s, "c", "67890")
	for i, k := range []oci.Digest{a, b, c} {
		age(t, s.recordPath(k), time.Duration(10-i)*time.Hour)
	}
	freed, err := s.Prune(t.Context(), PruneOptions{KeepBytes: 9})
	must(t, err)
	if freed != 5 {
		t.Errorf("freed %d", freed)
	}
	if _, err := s.Record(t.Context(), c); err != nil {
		t.Error("the youngest went too")
	}
	_, err = s.Record(t.Context(), b)
	mustBeGone(t, err)
}

func TestPruneKeepsRecordsOfImagesUnlessAll(t *testing.T) {
	s := tempStore(t)
	key := putRecord(t, s, "step", "a")
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Layers: []oci.Digest{digest.FromString("layer a")}}}))
	_, err := s.Prune(t.Context(), PruneOptions{})
	must(t, err)
	if _, err := s.Record(t.Context(), key); err != nil {
		t.Error(err)
	}
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	must(t, err)
	_, err = s.Record(t.Context(), key)
	mustBeGone(t, err)
	mustBeSound(t, s)
}

func TestPruneLeavesCacheMountsInUse(t *testing.T) {
	s := tempStore(t)
	mounts, err := s.CacheMounts(t.Context(), []CacheMountRequest{{ID: "used"}, {ID: "free"}}, nil)
	must(t, err)
	must(t, mounts[1].Close())
	defer mounts[0].Close()
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	must(t, err)
	if !exists(mounts[0].Dir()) || exists(mounts[1].Dir()) {
		t.Error("the wrong one went")
	}
}

func TestPruneFilters(t *testing.T) {
	s := tempStore(t)
	a, b := putRecord(t, s, "a", "a"), putRecord(t, s, "b", "b")
	mounts, err := s.CacheMounts(t.Context(), []CacheMountRequest{{ID: "m"}}, nil)
	must(t, err)
	must(t, mounts[0].Close())
	if _, err := s.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"colour": {"red"}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown filter: %v", err)
	}
	_, err = s.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"type": {"regular"}, "id": {a.Encoded()[:12]}}})
	must(t, err)
	_, err = s.Record(t.Context(), a)
	mustBeGone(t, err)
	if _, err := s.Record(t.Context(), b); err != nil {
		t.Error(err)
	}
	_, err = s.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"type": {"exec.cachemount"}}})
	must(t, err)
	if exists(mounts[0].Dir()) {
		t.Error("the cache mount stays")
	}
}

func TestPruneForgetsDeadEnginesAndDownloads(t *testing.T) {
	s := tempStore(t)
	dead, err := Open(t.Context(), s.Root(), Options{EngineDir: t.TempDir()})
	must(t, err)
	blob := putBlob(t, dead, "kept by the dead")
	must(t, dead.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{blob}}}))
	_, hold, _, err := dead.Volume(t.Context(), "data", true)
	must(t, err)
	must(t, hold.Close())
	lock := dead.path(dead.engineRel("lock"))
	partial := s.path("ingest", blob.Encoded())
	must(t, os.WriteFile(partial, []byte("x"), 0o644))
	age(t, lock, 48*time.Hour)
	age(t, partial, 48*time.Hour)

	prune := func() {
		_, err := s.Prune(t.Context(), PruneOptions{})
		must(t, err)
	}
	prune()
	if !exists(lock) {
		t.Error("a live engine was forgotten")
	}
	if exists(partial) {
		t.Error("an abandoned download stays")
	}
	must(t, errors.Join(dead.log.Sync(), dead.Close()))
	prune()
	if exists(filepath.Dir(lock)) || hasBlob(t, s, blob) || exists(dead.path(dead.volumeRel("data"))) {
		t.Error("a dead engine, what it named or its volumes stay")
	}
}

func TestUsageCounts(t *testing.T) {
	s := tempStore(t)
	blob := putBlob(t, s, "12345")
	putBlob(t, s, "123")
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{blob}}}))
	putRecord(t, s, "key", "1234567")
	c, err := s.NewContainer(t.Context(), testCID)
	must(t, err)
	defer c.Close()
	must(t, os.WriteFile(filepath.Join(c.Path(), "file"), []byte("1234"), 0o600))
	u, err := s.Usage(t.Context())
	must(t, err)
	want := Usage{
		Blobs:      UsageOf{Count: 2, Active: 1, Bytes: 8, ReclaimableBytes: 3},
		Layers:     UsageOf{Count: 1, Bytes: 7, ReclaimableBytes: 7},
		Records:    UsageOf{Count: 1},
		Containers: UsageOf{Count: 1, Active: 1, Bytes: u.Containers.Bytes}, // those of the disk's blocks
	}
	if diff := cmp.Diff(want, u); diff != "" || u.Containers.Bytes < 4 {
		t.Error(u.Containers.Bytes, diff)
	}
	entries, err := s.CacheEntries(t.Context())
	must(t, err)
	if len(entries) != 1 || entries[0].SizeBytes != 7 || entries[0].Description != "key" {
		t.Errorf("got %+v", entries)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	s := tempStore(t)
	blob, layer := putBlob(t, s, "hello"), putLayer(t, s, "layer")
	path := s.path(blobObject(blob).rel())
	must(t, os.Chmod(path, 0o644))
	must(t, os.WriteFile(path, []byte("jello"), 0o644))
	must(t, os.Chmod(path, 0o444))
	must(t, os.RemoveAll(s.path(layerObject(s.class, s.LayerID(layer)).rel(), fsDir)))
	must(t, os.WriteFile(s.path("blobs", "sha256", "nonsense"), nil, 0o644))
	must(t, os.MkdirAll(s.path("cache", "ab"), 0o755))
	must(t, os.WriteFile(s.path("cache", "ab", "x.json"), []byte("{"), 0o644))
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{digest.FromString("gone")}}}))
	r, err := s.Verify(t.Context(), true)
	must(t, err)
	if len(r.Problems) != 4 || len(r.Dangling) != 1 {
		t.Errorf("got %d problems: %v; dangling: %v", len(r.Problems), r.Problems, r.Dangling)
	}
	if r, err = s.Verify(t.Context(), false); err != nil || len(r.Problems) != 3 {
		t.Errorf("not deep: got %v, %v", r.Problems, err)
	}
}
