package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

const (
	// capBytes is a quarter of what the processes want to have.
	capBytes   = 48 * mebi
	wantBytes  = 4 * capBytes
	itemBytes  = 2 * mebi
	capJobs    = 4
	capRounds  = 25
	writeBytes = 64 << 10
	// writeEvery paces a writer that asks nobody: 32 MiB/s.
	writeEvery = 2 * time.Millisecond
	// smallBytes is for records, references, ledgers and empty folders, which
	// nobody reserves room for.
	smallBytes = 4 * mebi
)

// cappedProcess pulls, builds and uses cache mounts on a store with a cap.
func cappedProcess(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: os.Getenv("DEN_TEST_ENGINE"), MaxBytes: capBytes, Notice: func(string) {}})
	if err != nil {
		return err
	}
	for range capRounds {
		// What is wanted is four times the cap: two thirds are layers and
		// blobs, the rest cache mounts.
		i := rand.IntN(wantBytes / itemBytes)
		switch i % 3 {
		case 0:
			err = pullItem(ctx, s, i)
		case 1:
			err = buildItem(ctx, s, i)
		case 2:
			err = growMount(ctx, s, i)
		}
		if err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
	}
	return errors.Join(s.log.Sync(), s.Close())
}

func pullItem(ctx context.Context, s *Store, i int) error {
	b, err := bigBlob(ctx, s, fmt.Sprint("pulled ", i), itemBytes)
	if err != nil {
		return err
	}
	r := Record{Blobs: []oci.Digest{b.Digest()}}
	return errors.Join(s.SetPulledRef(ctx, Ref{Name: fmt.Sprint("image", i), Record: r}), b.Close())
}

// fill writes n bytes as a program does that asks nobody, until it is killed.
func fill(ctx context.Context, path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	page := bytes.Repeat([]byte("x"), writeBytes)
	t := time.NewTicker(writeEvery)
	defer t.Stop()
	for written := 0; written < n && ctx.Err() == nil; written += len(page) {
		<-t.C
		if _, err := f.Write(page); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(context.Cause(ctx), f.Close())
}

func buildItem(ctx context.Context, s *Store, i int) error {
	key, diffID := digest.FromString(fmt.Sprint("step ", i)), digest.FromString(fmt.Sprint("layer ", i))
	if l, err := s.Layer(ctx, diffID); err == nil {
		return l.Close()
	}
	d, err := s.NewDraft(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	w, err := d.Watch(ctx)
	if err != nil {
		return err
	}
	err = fill(w.Context(), filepath.Join(d.FS(), "file"), itemBytes)
	if err := errors.Join(err, w.Stop()); err != nil {
		return err
	}
	l, err := d.Publish(ctx, LayerMeta{DiffID: diffID, SizeBytes: itemBytes, TreeBytes: itemBytes, Entries: 1})
	if err != nil {
		return err
	}
	_, err = s.PutRecord(ctx, key, Record{Layers: []oci.Digest{diffID}}, false)
	return errors.Join(err, l.Close())
}

func growMount(ctx context.Context, s *Store, i int) error {
	ms, err := s.CacheMounts(ctx, []CacheMountRequest{{ID: fmt.Sprint("mount", i), Sharing: SharingLocked}}, func() {})
	if err != nil {
		return err
	}
	defer ms[0].Close()
	w, err := s.Watch(ctx, ms[0].Dir())
	if err != nil {
		return err
	}
	err = fill(w.Context(), filepath.Join(ms[0].Dir(), fmt.Sprint("file", rand.IntN(2))), itemBytes/2)
	return errors.Join(err, w.Stop())
}

// Several processes want four times what the cap allows, in objects, uppers and
// cache mounts that grow while nobody is asked. Whoever looks, at any time, sees
// no more on disk than the cap and what is reserved.
func TestCapHoldsForManyProcesses(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	root := filepath.Join(t.TempDir(), "store")
	s := cappedStore(t, root, capBytes)
	var wg sync.WaitGroup
	for range capJobs {
		cmd := child(t, "capped", root, "")
		cmd.Env = append(cmd.Env, "DEN_TEST_ENGINE="+t.TempDir())
		must(t, cmd.Start())
		wg.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, stderr(cmd))
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var peak, over int64
	samples := 0
	for running := true; running; samples++ {
		select {
		case <-done:
			running = false
		default:
		}
		before, err := s.reservedBytes()
		must(t, err)
		used := diskUsage(t, root)
		after, err := s.reservedBytes()
		must(t, err)
		peak = max(peak, used)
		over = max(over, used-capBytes-smallBytes-max(before, after))
	}
	t.Logf("%d samples; at most %d of %d MiB on disk", samples, peak/mebi, capBytes/mebi)
	if over > 0 {
		t.Errorf("%d bytes over the cap and what is reserved", over)
	}
	if peak < capBytes/2 {
		t.Errorf("no more than %d bytes were ever there: nothing was tried", peak)
	}
	mustBeSound(t, s)
}

// A program that fills the disk faster than room can be had for it is stopped,
// and what the store keeps stays below the cap.
func TestProgramThatOutrunsTheCapIsStopped(t *testing.T) {
	t.Parallel()
	s := cappedStore(t, "", 16*mebi)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	w, err := s.Watch(t.Context(), d.FS())
	must(t, err)
	const wanted = 256 * mebi // far more than it writes before it is stopped, on a busy machine too
	err = fill(w.Context(), filepath.Join(d.FS(), "file"), wanted)
	if err := errors.Join(err, w.Stop()); !errdefs.IsResourceExhausted(err) {
		t.Fatalf("got %v", err)
	}
	if used := diskUsage(t, s.Root()); used > wanted/2 {
		t.Errorf("%d bytes are on disk", used)
	}
}

// A step that ends with less room than is reserved ahead is not refused.
func TestStepThatJustFitsIsNotRefused(t *testing.T) {
	t.Parallel()
	s := cappedStore(t, "", 16*mebi)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	w, err := s.Watch(t.Context(), d.FS())
	must(t, err)
	must(t, fill(w.Context(), filepath.Join(d.FS(), "file"), 14*mebi))
	must(t, w.Stop())
}
