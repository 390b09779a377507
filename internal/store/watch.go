package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"den/internal/sys"
)

// watchEvery is how often a watch looks at the disk. What a program writes
// between two looks, beyond what is reserved ahead of it, is over the cap.
const watchEvery = 50 * time.Millisecond

// A Watch keeps room reserved ahead of somebody who writes into the store and
// does not ask: a program in a sandbox, an unpacking. When there is no more
// room, it cancels its context, with the reason as the cause.
type Watch struct {
	store  *Store
	ctx    context.Context
	cancel context.CancelCauseFunc
	rels   []string
	ahead  *Reservation
	done   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	fsUsed int64 // at the last measurement
	bytes  int64 // in rels then
	paced  int64 // read through Paced since then
	err    error
	over   bool
}

// Watch begins to watch dirs, which are beneath the store's root. Without a
// budget it does nothing.
func (s *Store) Watch(ctx context.Context, dirs ...string) (*Watch, error) {
	w := &Watch{store: s, ctx: ctx}
	if !s.budget.set() || s.readOnly {
		return w, nil
	}
	for _, dir := range dirs {
		rel, err := filepath.Rel(s.root, dir)
		if err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		w.rels = append(w.rels, rel)
	}
	var err error
	if w.ahead, err = s.Reserve(ctx, -1); err != nil {
		return nil, err
	}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.done = make(chan struct{})
	if err := errors.Join(w.measure(), w.ahead.Ensure(ctx, w.room())); err != nil {
		w.cancel(err)
		return nil, errors.Join(err, w.ahead.Close())
	}
	w.wg.Go(w.run)
	return w, nil
}

// Context ends when the store is full, or with the context given to Watch.
func (w *Watch) Context() context.Context { return w.ctx }

// Stop ends the watch, after a last look: the error says that what was written
// has no room. Stopping again returns the same.
func (w *Watch) Stop() error {
	if w.ahead == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return w.err
	}
	w.over = true
	close(w.done)
	w.mu.Unlock()
	w.wg.Wait()
	w.mu.Lock()
	if w.err == nil && w.ctx.Err() == nil {
		w.err = w.look(w.ctx)
	}
	w.err = errors.Join(w.err, w.ahead.Close())
	w.cancel(w.err)
	return w.err
}

// Paced returns r, slowed down where needed so that the room for what is read
// from it is reserved before it is read.
func (w *Watch) Paced(r io.Reader) io.Reader {
	if w.ahead == nil {
		return r
	}
	return &pacedReader{w, r}
}

type pacedReader struct {
	watch *Watch
	r     io.Reader
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n == 0 {
		return n, err
	}
	w := p.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.paced += int64(n); w.paced > w.room()/2 && w.err == nil {
		w.fail(w.look(w.ctx))
	}
	if w.err != nil {
		return 0, w.err
	}
	return n, err
}

func (w *Watch) fail(err error) {
	if err != nil && w.err == nil {
		w.err = err
		w.cancel(err)
	}
}

func (w *Watch) run() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-w.ctx.Done():
			return
		case <-t.C:
		}
		w.mu.Lock()
		w.fail(w.tick())
		err := w.err
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// tick looks closer only if the file system grew by enough to be worth it.
func (w *Watch) tick() error {
	d, err := sys.DiskOf(w.store.root)
	if err != nil || d.UsedBytes-w.fsUsed < w.room()/4 {
		return err
	}
	return w.look(w.ctx)
}

// look accounts for what was written and reserves the next piece.
func (w *Watch) look(ctx context.Context) error {
	before := w.bytes
	if err := w.measure(); err != nil {
		return err
	}
	w.ahead.Wrote(w.bytes - before)
	return w.ahead.Ensure(ctx, w.room())
}

// measure notes how much there is.
func (w *Watch) measure() error {
	d, err := sys.DiskOf(w.store.root)
	if err != nil {
		return err
	}
	var sum int64
	for _, rel := range w.rels {
		n, err := w.store.treeBytes(rel)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		sum += n
	}
	w.fsUsed, w.bytes, w.paced = d.UsedBytes, sum, 0
	return nil
}

// room is how much is to be reserved ahead.
func (w *Watch) room() int64 {
	if cap := w.store.budget.maxBytes; cap > 0 {
		return max(min(maxStep, cap/16), minStep)
	}
	return maxStep
}
