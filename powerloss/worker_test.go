package powerloss

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/oci"
	"den/internal/store"
)

// A task is what a child process is told.
type task struct {
	Root   string
	Engine string // the engine's directory, not on the disk
	Mode   durable.Mode
	Name   string // of the worker
	Run    int    // how many workers of this name there were
	Ops    int
	Want   expected // of a checker
}

// A teller tells the disk what a process does. It returns when that is in the
// log, so that the log has it after the writes that came before.
type teller struct {
	out *json.Encoder
	ack *os.File
}

func (t teller) tell(e event) error {
	if t.out == nil {
		return nil // nobody listens
	}
	if err := t.out.Encode(e); err != nil {
		return err
	}
	_, err := t.ack.Read(make([]byte, 1))
	return err
}

// A worker uses the store as builds and pulls do.
type worker struct {
	task
	teller
	s    *store.Store
	r    *rand.Rand
	refs int // how many were set
}

// id is the process's, in events.
func (w *worker) id() string { return fmt.Sprint(w.Name, "-", w.Run) }

func openStore(ctx context.Context, t task) (*store.Store, error) {
	return store.Open(ctx, t.Root, store.Options{EngineDir: t.Engine, Durability: t.Mode, Notice: func(string) {}})
}

func work(ctx context.Context, t task, tell teller) error {
	s, err := openStore(ctx, t)
	if err != nil {
		return err
	}
	w := &worker{task: t, teller: tell, s: s, r: random(fmt.Sprint(t.Name, t.Run))}
	ops := []func(context.Context, string) error{w.blob, w.layer, w.build, w.build, w.pull, w.mutable}
	for i := range t.Ops {
		seed := fmt.Sprintf("%s-%d-%d", t.Name, t.Run, i)
		if err := ops[w.r.IntN(len(ops))](ctx, seed); err != nil {
			return fmt.Errorf("%s: %w", seed, err)
		}
	}
	if err := w.tell(event{Op: "closing", Worker: w.id()}); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	return w.tell(event{Op: "closed", Worker: w.id()})
}

func (w *worker) blob(ctx context.Context, seed string) error {
	b, err := w.s.PutBlob(ctx, strings.NewReader(string(text(seed, 300_000))))
	if err != nil {
		return err
	}
	return errors.Join(w.tell(event{Op: "published", Worker: w.id(), Rel: blobRel(b.Digest())}), b.Close())
}

// publishLayer makes the layer seed; one in three lies over another that is made with it.
func (w *worker) publishLayer(ctx context.Context, seed string) (*store.Layer, error) {
	if w.r.IntN(3) > 0 {
		return w.publishLayerOver(ctx, seed, "")
	}
	below, err := w.publishLayerOver(ctx, seed+"-below", "")
	if err != nil {
		return nil, err
	}
	defer below.Close()
	return w.publishLayerOver(ctx, seed, seed+"-below")
}

func (w *worker) publishLayerOver(ctx context.Context, seed, below string) (*store.Layer, error) {
	d, err := w.s.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	if err := plant(d.FS(), seed); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	meta := store.LayerMeta{DiffID: layerID(seed), SizeBytes: 1, Extra: mark{Seed: seed}.json()}
	e := event{Op: "published", Worker: w.id(), Rel: layerRel(w.s, seed)}
	if below != "" {
		meta.Over, e.Needs = []oci.Digest{layerID(below)}, []string{layerRel(w.s, below)}
	}
	l, err := d.Publish(ctx, meta)
	if err != nil {
		return nil, err
	}
	return l, w.tell(e)
}

func (w *worker) layer(ctx context.Context, seed string) error {
	l, err := w.publishLayer(ctx, seed)
	if err != nil {
		return err
	}
	return l.Close()
}

// build makes a layer, a record and, most times, a tag.
func (w *worker) build(ctx context.Context, seed string) error {
	l, err := w.publishLayer(ctx, seed)
	if err != nil {
		return err
	}
	defer l.Close()
	needs := []string{layerRel(w.s, seed)}
	r := store.Record{Layers: []oci.Digest{l.DiffID()}, Data: mark{Seed: seed}.json()}
	if _, err := w.s.PutRecord(ctx, recordKey(seed), r, false); err != nil {
		return err
	}
	if err := w.tell(event{Op: "published", Worker: w.id(), Rel: recordRel(seed), Needs: needs, Root: true}); err != nil {
		return err
	}
	if w.r.IntN(4) == 0 {
		return nil
	}
	return w.setRef(ctx, r, needs, seed)
}

func (w *worker) setRef(ctx context.Context, r store.Record, needs []string, seed string) error {
	name := fmt.Sprintf("%s:%d", w.Name, w.r.IntN(3))
	w.refs++
	version := w.Run*10_000 + w.refs
	r.Data = mark{Seed: seed, Version: version}.json()
	rel := refRel(w.s, name)
	if err := w.tell(event{Op: "naming", Rel: rel, Version: version}); err != nil {
		return err
	}
	if err := w.s.SetRef(ctx, store.Ref{Name: name, Record: r}); err != nil {
		return err
	}
	return w.tell(event{Op: "named", Rel: rel, Version: version, Needs: needs})
}

// pull ingests a blob and names it.
func (w *worker) pull(ctx context.Context, seed string) error {
	data := text(seed, 300_000)
	b, err := w.s.Ingest(ctx, store.Ingest{Digest: digest.FromBytes(data), SizeBytes: int64(len(data)), Fetch: fetch(data)})
	if err != nil {
		return err
	}
	defer b.Close()
	needs := []string{blobRel(b.Digest())}
	if err := w.tell(event{Op: "published", Worker: w.id(), Rel: needs[0]}); err != nil {
		return err
	}
	return w.setRef(ctx, store.Record{Blobs: []oci.Digest{b.Digest()}}, needs, seed)
}

// mutable uses what has no epoch.
func (w *worker) mutable(ctx context.Context, seed string) error {
	memo := fmt.Sprint("memo", w.r.IntN(5))
	if err := w.s.PutDerived(memo, text(memo, 5000)); err != nil {
		return err
	}
	mounts, err := w.s.CacheMounts(ctx, []store.CacheMountRequest{{ID: fmt.Sprint("mount", w.r.IntN(3))}}, nil)
	if err != nil {
		return err
	}
	file := filepath.Join(mounts[0].Dir(), fmt.Sprint(w.r.IntN(5)))
	if err := errors.Join(writeFile(file, text(seed, 10_000), true), mounts[0].Close()); err != nil {
		return err
	}
	l, err := w.publishLayer(ctx, seed)
	if err != nil {
		return err
	}
	defer l.Close()
	cid := digest.FromString(seed).Encoded()[:12]
	c, err := w.s.NewContainer(ctx, cid)
	if err != nil {
		return err
	}
	err = errors.Join(c.SetRoots(store.Record{Layers: []oci.Digest{l.DiffID()}}), w.s.NameContainer(ctx, cid, cid))
	if err != nil || w.r.IntN(2) == 0 {
		return errors.Join(err, c.Close())
	}
	return errors.Join(w.s.UnnameContainer(cid), c.Remove())
}

// collect evicts some records and what nothing names.
func collect(ctx context.Context, t task, tell teller) error {
	s, err := openStore(ctx, t)
	if err != nil {
		return err
	}
	entries, err := s.CacheEntries(ctx)
	if err != nil {
		return err
	}
	o := store.PruneOptions{All: true, Filters: map[string][]string{"id": {"none"}}}
	for i, e := range entries {
		if d := digest.Digest(e.ID); i%3 == 0 && d.Validate() == nil {
			o.Filters["id"] = append(o.Filters["id"], e.ID)
			rel := filepath.Join("cache", d.Encoded()[:2], d.Encoded()+".json")
			if err := tell.tell(event{Op: "removing", Rel: rel}); err != nil {
				return err
			}
		}
	}
	if err := tell.tell(event{Op: "collecting"}); err != nil {
		return err
	}
	if _, err := s.Prune(ctx, o); err != nil {
		return err
	}
	return s.Close()
}

// disturb makes the file system commit its metadata, and write back some of
// the data, at any moment, as payloads and the kernel do.
func disturb(ctx context.Context, t task) error {
	r := random("noise " + t.Name)
	for ctx.Err() == nil {
		if err := writeFile(filepath.Join(t.Root, "..", "noise"), []byte(fmt.Sprint(r.Uint64())), true); err != nil {
			return err
		}
		for _, pattern := range []string{"tmp/*", "ingest/*/*", "layers/*/*/*/fs/*"} {
			paths, err := filepath.Glob(filepath.Join(t.Root, pattern))
			if err != nil {
				return err
			}
			if len(paths) == 0 {
				continue
			}
			f, err := os.Open(paths[r.IntN(len(paths))])
			if err != nil {
				continue // it is gone
			}
			// Whatever comes of it: directories cannot.
			_ = unix.SyncFileRange(int(f.Fd()), 0, int64(4096*r.IntN(20)), unix.SYNC_FILE_RANGE_WRITE)
			f.Close()
		}
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
	}
	return nil
}

func fetch(data []byte) func(context.Context, int64) (io.ReadCloser, error) {
	return func(_ context.Context, off int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[off:])), nil
	}
}
