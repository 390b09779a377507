//go:build stress

package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/sys"
)

// stressBuild says that tests may take minutes.
const stressBuild = true

// extraChildren are the children of the stress build.
func extraChildren() map[string]func(context.Context, string) error {
	return map[string]func(context.Context, string) error{"stress": stressProcess}
}

// A job is one process of the stress test: what it does until it is killed.
// An error is a violation; whatever others do, a job has no reason to fail.
type job struct {
	store *Store
	slot  string // of the parent; one process at a time has it
}

// stressProcess does one of the roles, of which $DEN_TEST_ROLE is one.
func stressProcess(ctx context.Context, root string) error {
	slot := os.Getenv("DEN_TEST_SLOT")
	s, err := Open(ctx, root, Options{EngineDir: os.Getenv("DEN_TEST_ENGINE"), Notice: func(string) {}})
	if err != nil {
		return err
	}
	j := &job{s, slot}
	roles := map[string][]func(context.Context) error{
		"user":      {j.name, j.name, j.tag, j.blob, j.hit},
		"keeper":    {j.tag, j.mount, j.contain, j.work},
		"collector": {j.collect},
	}
	steps := roles[os.Getenv("DEN_TEST_ROLE")]
	for {
		if err := steps[rand.IntN(len(steps))](ctx); err != nil {
			return err
		}
	}
}

func stressText(i int) string { return fmt.Sprint("x", i) }

// takeLayer leases layer i, and makes it if it is missing. An odd one lies over
// the one before it.
func (j *job) takeLayer(ctx context.Context, i int) (*Layer, error) {
	text := stressText(i)
	for {
		l, err := j.store.Layer(ctx, digest.FromString("layer "+text))
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("I8: a layer is neither there nor missing: %w", err)
		}
		if err == nil {
			return l, nil
		}
		var over []oci.Digest
		var below *Layer
		if i%2 == 1 {
			if below, err = j.takeLayer(ctx, i-1); err != nil {
				return nil, err
			}
			over = []oci.Digest{below.DiffID()}
		}
		l, err = publishLayer(ctx, j.store, text, over...)
		if below != nil {
			err = errors.Join(err, below.Close())
		}
		if !errdefs.IsNotFound(err) {
			return l, err
		}
	}
}

// holds checks what is leased: it is whole and right (I1, I2), what its path
// names (I3, so nobody but the collector moved it, I6), down to the last tree (I5).
func holds(l *Layer, i int) error {
	if want := 1 + i%2; len(l.Dirs()) != want {
		return fmt.Errorf("I5: layer x%d has %d trees, want %d", i, len(l.Dirs()), want)
	}
	for n, dir := range l.Dirs() {
		same, err := sys.SameInode(l.Hold()[n], filepath.Dir(dir))
		if err != nil {
			return err
		}
		if !same {
			return fmt.Errorf("I3, I6: the lease on %s is not on what the path names", dir)
		}
		want := stressText(i - n)
		data, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil {
			return fmt.Errorf("I1: leased layer %s: %w", l.DiffID(), err)
		}
		if string(data) != want {
			return fmt.Errorf("I2: leased layer %s holds %q, want %q", l.DiffID(), data, want)
		}
	}
	return nil
}

// hit uses a record as a build does: what it names is there or a miss.
func (j *job) hit(ctx context.Context) error {
	r, err := j.store.Record(ctx, digest.FromString(fmt.Sprint("record", rand.IntN(3))))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("I8: a record is neither there nor missing: %w", err)
	}
	for _, d := range r.Blobs {
		b, err := j.store.Blob(ctx, d)
		if err == nil {
			err = b.Close()
		}
		if err = ignore(err, errdefs.ErrNotFound); err != nil {
			return fmt.Errorf("I8: a blob is neither there nor missing: %w", err)
		}
	}
	for _, d := range r.Layers {
		l, err := j.store.Layer(ctx, d)
		if err == nil {
			err = l.Close()
		}
		if err = ignore(err, errdefs.ErrNotFound); err != nil {
			return fmt.Errorf("I8: a layer is neither there nor missing: %w", err)
		}
	}
	return nil
}

// name uses a layer and a blob and writes a record of them.
func (j *job) name(ctx context.Context) error {
	i := rand.IntN(stressObjects)
	l, err := j.takeLayer(ctx, i)
	if err != nil {
		return err
	}
	b, err := j.store.PutBlob(ctx, strings.NewReader(stressText(i)))
	if err != nil {
		return err
	}
	err = holds(l, i)
	if err == nil && rand.IntN(2) == 0 {
		key := digest.FromString(fmt.Sprint("record", rand.IntN(3)))
		_, err = j.store.PutRecord(ctx, key, Record{Layers: []oci.Digest{l.DiffID()}, Blobs: []oci.Digest{b.Digest()}}, rand.IntN(2) == 0)
	}
	return errors.Join(err, holds(l, i), l.Close(), b.Close())
}

// tag names what it built as every job does, and must see its own.
func (j *job) tag(ctx context.Context) error {
	i := rand.IntN(stressObjects)
	l, err := j.takeLayer(ctx, i)
	if err != nil {
		return err
	}
	defer l.Close()
	r := Ref{Name: "app:test", Record: Record{Layers: []oci.Digest{l.DiffID()}, Op: j.slot}}
	if err := j.store.SetRef(ctx, r); err != nil {
		return err
	}
	got, err := j.store.Ref(ctx, "app:test")
	if err != nil {
		return fmt.Errorf("I4: own tag: %w", err)
	}
	if got.Op != j.slot {
		return fmt.Errorf("I7: engines are not apart: tag of %s seen by %s", got.Op, j.slot)
	}
	if rand.IntN(2) == 0 {
		// Used again by name alone, as den run does: what a tag names is there.
		if err := l.Close(); err != nil {
			return err
		}
		again, err := j.store.Layer(ctx, got.Layers[0])
		if err != nil {
			return fmt.Errorf("I4: own tag dangles: %w", err)
		}
		if err := errors.Join(holds(again, i), again.Close()); err != nil {
			return err
		}
	}
	return j.store.DeleteRef(ctx, "app:test")
}

// blob ingests a blob in pieces, so that a kill leaves half of it.
func (j *job) blob(ctx context.Context) error {
	text := strings.Repeat(stressText(rand.IntN(stressObjects)), 1000)
	b, err := j.store.Ingest(ctx, (&source{text: text}).ingest(nil))
	if err != nil {
		return err
	}
	got := make([]byte, b.Size())
	_, err = b.ReadAt(got, 0)
	if err == nil && string(got) != text {
		err = errors.New("I2: a blob holds other bytes than its name")
	}
	return errors.Join(err, b.Close())
}

// mount writes into a cache mount that nobody else may have meanwhile.
func (j *job) mount(ctx context.Context) error {
	reqs := []CacheMountRequest{{ID: "b", Sharing: SharingLocked}, {ID: "a", Sharing: SharingLocked}, {ID: "c"}}
	rand.Shuffle(len(reqs), func(a, b int) { reqs[a], reqs[b] = reqs[b], reqs[a] })
	ms, err := j.store.CacheMounts(ctx, reqs, func() {})
	if err != nil {
		return err
	}
	for n, m := range ms {
		if reqs[n].Sharing == SharingLocked {
			err = errors.Join(err, alone(filepath.Join(m.Dir(), "who"), j.slot))
		}
		err = errors.Join(err, m.Close())
	}
	return err
}

// alone checks an exclusive lock: nobody else took it for a dead process's, in
// whatever namespace both have the same process id (I7).
func alone(path, slot string) error {
	if err := os.WriteFile(path, []byte(slot), 0o644); err != nil {
		return fmt.Errorf("locked tree: %w", err)
	}
	time.Sleep(200 * time.Microsecond)
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("locked tree: %w", err)
	}
	if string(data) != slot {
		return fmt.Errorf("I7: %s has the lock that %s has", data, slot)
	}
	return nil
}

// contain makes a container that keeps a layer, and removes it.
func (j *job) contain(ctx context.Context) error {
	i := rand.IntN(stressObjects)
	l, err := j.takeLayer(ctx, i)
	if err != nil {
		return err
	}
	c, err := j.store.NewContainer(ctx, fmt.Sprintf("c%015x", rand.Uint64()>>4))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	err = errors.Join(c.SetRoots(Record{Layers: []oci.Digest{l.DiffID()}}), l.Close())
	if err == nil {
		// Without a lease: the roots keep it.
		again, err := j.store.Layer(ctx, digest.FromString("layer "+stressText(i)))
		if err != nil {
			return fmt.Errorf("I4: a container's layer: %w", err)
		}
		if err := errors.Join(holds(again, i), again.Close()); err != nil {
			return err
		}
	}
	return errors.Join(err, c.Remove())
}

// work takes turns with others.
func (j *job) work(ctx context.Context) error {
	w, err := j.store.Work(ctx, "stress", "turn", nil)
	if err != nil {
		return err
	}
	defer w.Done()
	return alone(j.store.path("lock", "turn"), j.slot)
}

// collect evicts and collects.
func (j *job) collect(ctx context.Context) error {
	switch rand.IntN(6) {
	case 0:
		_, err := j.store.Prune(ctx, PruneOptions{All: true})
		return err
	case 1, 2:
		if err := removeFile(j.store.recordPath(digest.FromString(fmt.Sprint("record", rand.IntN(3))))); err != nil {
			return err
		}
	}
	_, err := j.store.Collect(ctx)
	return err
}
