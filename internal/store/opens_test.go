package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
	"den/internal/sys/systest"
)

// fillWith puts n blobs into the store, without going through it.
func fillWith(t testing.TB, s *Store, n int) {
	t.Helper()
	must(t, os.MkdirAll(s.path("blobs", "sha256"), 0o755))
	for i := range n {
		text := fmt.Sprint("filler", i)
		must(t, os.WriteFile(s.path("blobs", "sha256", digest.FromString(text).Encoded()), []byte(text), 0o444))
	}
}

func TestOpeningAStoreLooksAtNoObject(t *testing.T) {
	s := tempStore(t)
	putBlob(t, s, "blob")
	layer := putLayer(t, s, "layer")
	putRecord(t, s, "key", "recorded")
	must(t, s.SetPulledRef(t.Context(), Ref{Name: "pulled", Record: Record{Layers: []oci.Digest{layer}}}))
	for _, capBytes := range []int64{0, 1 << 40} {
		opened := systest.Opened(t, s.Root(), func() {
			again, err := Open(t.Context(), s.Root(), Options{EngineDir: t.TempDir(), MaxBytes: capBytes})
			must(t, err)
			must(t, again.Close())
		})
		if len(opened) > 0 {
			t.Errorf("cap %d: opening opened %v", capBytes, opened)
		}
	}
}

func TestUsingAnObjectOpensNoOther(t *testing.T) {
	s := tempStore(t)
	fillWith(t, s, 100)
	blob, layer := putBlob(t, s, "blob"), putLayer(t, s, "layer")
	key := putRecord(t, s, "key", "recorded")
	again := openStore(t, s.Root(), t.TempDir())
	opened := systest.Opened(t, s.Root(), func() {
		b, err := again.Blob(t.Context(), blob)
		must(t, err)
		l, err := again.Layer(t.Context(), layer)
		must(t, err)
		_, err = again.Record(t.Context(), key)
		must(t, errors.Join(err, b.Close(), l.Close()))
	})
	rel, err := filepath.Rel(s.Root(), s.recordPath(key))
	must(t, err)
	want := []string{blobObject(blob).rel(), layerObject(s.class, s.LayerID(layer)).rel(), rel}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(opened))); diff != "" {
		t.Error("opened (-want +got):\n" + diff)
	}
}

// All locks of the whole store are held by somebody who was stopped, and a
// build goes on: it leases, publishes, records, tags and mounts.
func TestNoPathOfABuildTakesAWholeStoreLock(t *testing.T) {
	s := tempStore(t)
	putBlob(t, s, "first") // makes the folders
	for _, name := range []string{"gc", "recover", ledgerFile} {
		f, err := openLock(s.path("lock", name), false)
		must(t, err)
		defer f.Close()
		ok, err := sys.TryFlock(f, unix.LOCK_EX)
		if !ok || err != nil {
			t.Fatalf("lock/%s is held: %v", name, err)
		}
	}
	// And lock/store is only ever shared.
	f, err := openLock(s.path("lock", "store"), false)
	must(t, err)
	defer f.Close()
	must(t, sys.Flock(f, unix.LOCK_SH))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	job, err := Open(ctx, s.Root(), Options{EngineDir: t.TempDir()})
	must(t, err)
	for _, step := range []func(context.Context, *Store) error{publishLoose, ingestOne, commitOne, nameOne, mountOne, containOne} {
		must(t, step(ctx, job))
	}
	must(t, errors.Join(job.log.Sync(), job.Close()))
}
