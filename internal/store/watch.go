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

const (
	// watchEvery is how often a watch looks at the disk while nothing grows.
	watchEvery = 50 * time.Millisecond
	// watchSoft is how often it does for a soft budget.
	watchSoft = time.Second
	// watchFast is how often it does when the disk fills as fast as it can.
	watchFast = time.Millisecond
	// nearBytes is how far from its limit a store is not near: what a program may write
	// between two looks that far apart, and while a busy machine lets den wait.
	nearBytes = 1 << 30
	// burstBytes is how much a program writes in a second when it writes zeroes into
	// memory; 11 GB were measured.
	burstBytes = 10 << 30
	// recount is how often the watched trees are counted although the disk did
	// not grow: somebody may free as much as they take.
	recount = time.Second
	// recountShare bounds the time for counting: one part of so many.
	recountShare = 20
	// growShare is how many times longer than a try to make room was, the next
	// one is put off.
	growShare = 4
)

// A Watch keeps room reserved ahead of somebody who writes into the store and
// does not ask: a program in a sandbox, an unpacking. When there is no more
// room, it cancels its context, with the reason as the cause.
//
// What is reserved ahead is eaten while the next piece is being had, which may
// take a collection. A program that has eaten half of it meanwhile is held, if it can
// be, for two seconds at most; one that has eaten nearly all of it, for as long as that
// takes. A guard of its own sees to that while the watch itself waits for the disk. One
// that has eaten all of it and gets no more goes on for as long as the store is not over
// its cap. For a soft budget, which refuses nothing, nobody is held and a look now and then is enough.
type Watch struct {
	store  *Store
	ctx    context.Context
	cancel context.CancelCauseFunc
	rels   []string
	ahead  *Reservation
	done   chan struct{}
	alarm  chan struct{} // the guard holds the program
	wg     sync.WaitGroup
	// guarding begins the guard once.
	guarding sync.Once
	// stopGrowing ends the wait for more room.
	growCtx     context.Context
	stopGrowing context.CancelFunc

	mu      sync.Mutex
	brake   brake
	growing bool      // somebody is having the next piece
	growAt  time.Time // when to try that again
	near    nearness
	fsUsed  int64
	grown   int64         // by how much the file system grew since rels were counted
	bytes   int64         // in rels then
	counted time.Time     // then
	cost    time.Duration // of counting them
	paced   int64         // read through Paced since then
	err     error
	over    bool
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
	w.growCtx, w.stopGrowing = context.WithCancel(w.ctx)
	w.done, w.alarm = make(chan struct{}), make(chan struct{}, 1)
	if err := errors.Join(w.count(), w.ahead.Ensure(ctx, w.room())); err != nil {
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
	w.brake.release()
	close(w.done)
	w.stopGrowing()
	w.mu.Unlock()
	w.wg.Wait()
	w.mu.Lock()
	if w.err == nil && w.ctx.Err() == nil {
		// What is written is to have room; nothing more is written.
		w.err = errors.Join(w.account(), w.ahead.cover(w.ctx))
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
		w.fail(w.account())
		if w.err == nil {
			w.fail(w.ahead.Ensure(w.ctx, w.room()))
		}
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
	pause := w.every()
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-w.ctx.Done():
			return
		case <-w.alarm:
		case <-t.C:
		}
		w.mu.Lock()
		next, err := w.tick(pause)
		w.fail(err)
		err = w.err
		w.mu.Unlock()
		if err != nil {
			return
		}
		pause = next
		t.Reset(pause)
	}
}

// every is how often to look while nothing grows.
func (w *Watch) every() time.Duration {
	if w.store.budget.soft {
		return watchSoft
	}
	return watchEvery
}

// tick looks closer if the file system grew by enough to be worth it, or if
// nobody did for a while. It returns when to look again: at the rate of the
// last pause, a quarter of the room is not gone before.
func (w *Watch) tick(pause time.Duration) (next time.Duration, err error) {
	d, err := sys.DiskOf(w.store.root)
	if err != nil {
		return 0, err
	}
	grown := max(d.UsedBytes-w.fsUsed, 0)
	w.fsUsed = d.UsedBytes
	w.grown += grown
	next = w.every()
	if grown > 0 {
		rate := time.Duration(float64(pause) * float64(w.room()/4) / float64(grown))
		next = min(max(rate, watchFast), next)
	}
	if !w.store.budget.soft && w.near.to(w.store, d) < nearBytes {
		next = min(next, w.burst())
	}
	lack, _ := w.ahead.lack(w.grown + 1)
	alarmed := w.brake.since() > 0 && !w.growing
	since := time.Since(w.counted)
	dear := since < 5*w.cost
	if w.grown >= w.room()/4 && !dear || lack > 0 && !dear || alarmed || since > max(recount, recountShare*w.cost) {
		err = w.look()
	}
	w.press()
	w.aim()
	if err == nil && !w.growing { // there was enough
		w.brake.letGo()
	}
	return next, err
}

// burst is how soon a quarter of the room may be gone that nobody has begun to eat.
func (w *Watch) burst() time.Duration {
	return max(time.Duration(float64(w.room()/4)/burstBytes*float64(time.Second)), watchFast)
}

// look accounts for what was written and begins to reserve the next piece. The
// error says that more was written than there is room for.
func (w *Watch) look() error {
	if err := w.account(); err != nil {
		return err
	}
	overdrawn := w.ahead.overdrawn()
	lack, _ := w.ahead.lack(w.room())
	if lack > 0 && !w.growing && (time.Now().After(w.growAt) || overdrawn && w.brake.can()) {
		w.growing = true
		w.wg.Go(w.grow)
	}
	// What is held writes nothing more until it is known whether there is room.
	if overdrawn && !(w.growing && w.brake.can()) {
		return w.store.overBudget(w.ctx)
	}
	return nil
}

// grow reserves the next piece, without the watch's lock: it may have to wait.
// A refusal is not the end while what is reserved lasts.
func (w *Watch) grow() {
	begin := time.Now()
	err := w.ahead.Ensure(w.growCtx, w.room())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.growing = false
	if w.growCtx.Err() == nil {
		if errors.Is(err, errFull) {
			w.growAt = time.Now().Add(growShare * time.Since(begin))
			err = nil
			if w.ahead.overdrawn() {
				err = w.store.overBudget(w.growCtx)
			}
		}
		w.fail(err)
	}
	w.aim()
	w.brake.letGo()
}

// account takes what was written out of what is reserved.
func (w *Watch) account() error {
	before := w.bytes
	if err := w.count(); err != nil {
		return err
	}
	w.ahead.Wrote(w.bytes - before)
	return nil
}

// count notes how much there is.
func (w *Watch) count() error {
	d, err := sys.DiskOf(w.store.root)
	if err != nil {
		return err
	}
	begin := time.Now()
	var sum int64
	for _, rel := range w.rels {
		n, err := w.store.treeBytes(rel)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		sum += n
	}
	w.fsUsed, w.grown, w.bytes, w.paced = d.UsedBytes, 0, sum, 0
	w.counted, w.cost = time.Now(), time.Since(begin)
	return nil
}

// room is how much is to be reserved ahead.
func (w *Watch) room() int64 {
	if cap := w.store.budget.maxBytes; cap > 0 {
		return max(min(maxStep, cap/16), minStep)
	}
	return maxStep
}
