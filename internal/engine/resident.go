package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
)

// residents are the containers of den serve that this process looks after. They have
// no owner but their records: what is here is what runs now, and who waits.
type residents struct {
	mu      sync.Mutex
	serving bool
	lives   map[string]*life
	// adopted, once Supervise was called, is closed when it has found all that runs.
	adopted chan struct{}
	closing bool
	wg      sync.WaitGroup
	// clearing counts removed containers whose files are still being deleted, and
	// broom is held by who deletes: the disk has no more to give.
	clearing sync.WaitGroup
	broom    sync.Mutex
}

// clear deletes the files of a container that is gone: beside all else where this process
// goes on, else at once.
func (e *Engine) clear(files func() error) error {
	if !e.later(files) {
		return files()
	}
	return nil
}

func (e *Engine) later(files func() error) bool {
	e.residents.mu.Lock()
	defer e.residents.mu.Unlock()
	if !e.residents.serving || e.residents.closing {
		return false
	}
	e.residents.clearing.Go(func() {
		e.residents.broom.Lock()
		defer e.residents.broom.Unlock()
		if err := files(); err != nil {
			e.Log(err) // what is left goes with the next collection
		}
	})
	return true
}

// serve makes this process the one that looks after resident containers.
func (e *Engine) serve() {
	e.residents.mu.Lock()
	defer e.residents.mu.Unlock()
	e.residents.serving = true
}

// keeps says that this process knows more of a container than its record says.
func (e *Engine) keeps(id string) bool {
	l := e.known(id)
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.run != nil || l.record.State == stateRestarting
}

func (e *Engine) known(id string) *life {
	e.residents.mu.Lock()
	defer e.residents.mu.Unlock()
	return e.residents.lives[id]
}

// A life is one resident container in this process's hands.
type life struct {
	engine *Engine
	id     string
	// op is held by who takes the container from one state to another.
	op chan struct{}

	mu      sync.Mutex
	record  record
	request *CreateRequest
	image   *image.Image
	config  *oci.Image
	run     *run
	// launching is the run whose streams are open and whose program does not run yet.
	launching *run
	// starting says that a start is under way, which holds op.
	starting bool
	// waiting are the clients that attached before the start.
	waiting []*Attachment
	exits   int
	code    int // of the last exit
	removed bool
	// departing says that the container removes itself.
	departing bool
	changed   chan struct{} // closed at the next change; nil while nobody waits
	// dir is kept, with its lock, between a run and its restart.
	dir         *store.ContainerDir
	backoff     time.Duration
	stopRestart context.CancelFunc
}

// lock takes op.
func (l *life) lock(ctx context.Context) error {
	select {
	case l.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *life) unlock() { <-l.op }

// notify wakes who waits for a change. The caller holds mu.
func (l *life) notify() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// change is closed at the next change. The caller holds mu.
func (l *life) change() <-chan struct{} {
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// resident finds a container that this process looks after; nil if another den does,
// or den run.
func (e *Engine) resident(ctx context.Context, nameOrID string) (*life, error) {
	if err := e.settled(ctx); err != nil {
		return nil, err
	}
	id, err := e.find(nameOrID)
	if err != nil {
		return nil, err
	}
	return e.life(id)
}

// mine is resident for what only who looks after a container can do.
func (e *Engine) mine(ctx context.Context, nameOrID string) (*life, error) {
	l, err := e.resident(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, conflict("container %s was not created here: another den runs it; use den run, den stop and den rm", nameOrID)
	}
	return l, nil
}

// settled waits until Supervise has found what runs.
func (e *Engine) settled(ctx context.Context) error {
	e.residents.mu.Lock()
	adopted := e.residents.adopted
	e.residents.mu.Unlock()
	if adopted == nil {
		return nil
	}
	select {
	case <-adopted:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// life is the container id's; nil if it is not ours.
func (e *Engine) life(id string) (*life, error) {
	e.residents.mu.Lock()
	defer e.residents.mu.Unlock()
	if !e.residents.serving {
		return nil, nil
	}
	if l := e.residents.lives[id]; l != nil {
		return l, nil
	}
	dir, err := e.Store.OpenContainer(id)
	if err != nil {
		return nil, missing(id, err)
	}
	defer dir.Close()
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound("No such container: %s", id)
	}
	if err != nil {
		return nil, err
	}
	if !r.Resident {
		return nil, nil
	}
	l := &life{engine: e, id: id, op: make(chan struct{}, 1), record: *r, code: r.ExitCode}
	if l.request, err = readRequest(dir); err != nil {
		return nil, err
	}
	if l.image, l.config, err = readImage(dir); err != nil {
		return nil, err
	}
	if e.residents.lives == nil {
		e.residents.lives = map[string]*life{}
	}
	e.residents.lives[id] = l
	return l, nil
}

// forget drops a container that is gone.
func (e *Engine) forget(l *life) {
	e.residents.mu.Lock()
	defer e.residents.mu.Unlock()
	if e.residents.lives[l.id] == l {
		delete(e.residents.lives, l.id)
	}
}

// heldFor is how long a lock is waited for that nobody is to have: the holder of a run that has just
// ended, or a process that is being started in this moment, may have a copy of it, and
// on a busy machine does not get to closing it.
const heldFor = 10 * time.Second

// kept is the container's directory with its lock, as a run has left it to what follows, or
// else opened.
func (l *life) kept(ctx context.Context) (*store.ContainerDir, error) {
	l.mu.Lock()
	dir := l.dir
	l.dir = nil
	l.mu.Unlock()
	if dir == nil {
		return l.locked(ctx)
	}
	return l.await(ctx, dir)
}

// locked opens the container's directory with its lock.
func (l *life) locked(ctx context.Context) (*store.ContainerDir, error) {
	dir, err := l.engine.Store.OpenContainer(l.id)
	if err != nil {
		return nil, missing(l.id, err)
	}
	return l.await(ctx, dir)
}

// await gives dir the lock, or closes it.
func (l *life) await(ctx context.Context, dir *store.ContainerDir) (*store.ContainerDir, error) {
	bounded, cancel := context.WithTimeout(ctx, heldFor)
	defer cancel()
	err := awaitFree(bounded, dir)
	if err == nil && gone(dir) {
		err = notFound("No such container: %s", l.id)
	}
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = conflict("container %s is held by another den: end that one", l.id[:12])
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// update changes the record of a container, in memory and on disk. The caller holds op.
func (l *life) update(change func(*record)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.updateLocked(change)
}

func (l *life) updateLocked(change func(*record)) error {
	dir, err := l.engine.Store.OpenContainer(l.id)
	if err != nil {
		return missing(l.id, err)
	}
	next := l.record
	change(&next)
	if err := errors.Join(next.write(dir.Path()), dir.Close()); err != nil {
		return err
	}
	if l.run != nil {
		l.run.unwritten = false
	}
	l.record = next
	l.notify()
	return nil
}

// snapshot is the record as it is now.
func (l *life) snapshot() record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record
}

// running is what runs now; an error of class errdefs.ErrConflict if nothing does.
func (l *life) running() (*run, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.run == nil {
		return nil, conflict("container %s is not running", l.id)
	}
	return l.run, nil
}

// tell emits an event of the container, under the name that it has now.
func (l *life) tell(action string, more map[string]string) {
	r := l.snapshot()
	l.engine.containerEvent(&r, action, more)
}

// complain is for trouble that nobody waits for an answer about.
func (l *life) complain(err error) {
	if err != nil {
		l.engine.Log(fmt.Errorf("container %s: %w", l.id[:12], err))
	}
}
