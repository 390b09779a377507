package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sandbox"
	"den/internal/store"
	"den/internal/sys"
)

// Supervise adopts the containers that run, applies restart policies and auto-removal to
// those that do not, and returns when ctx ends: then nothing of this process's follows a
// container any more, but those that can live without it go on. Until what runs is found,
// other calls wait.
func (e *Engine) Supervise(ctx context.Context) error {
	e.Begin(ctx)
	err := e.adoptAll(ctx)
	close(e.residents.adopted)
	if err != nil {
		return err
	}
	wait := e.watchNetworks(ctx)
	<-ctx.Done()
	wait()
	return nil
}

// Begin makes this process the one that looks after resident containers: what is asked of
// it waits until Supervise, which is called once, has found what runs. What happened under
// the dens before is known from now on.
func (e *Engine) Begin(ctx context.Context) {
	e.residents.mu.Lock()
	begun := e.residents.adopted != nil
	e.residents.serving = true
	if !begun {
		e.residents.adopted = make(chan struct{})
	}
	e.residents.mu.Unlock()
	if begun {
		return
	}
	if err := e.events.keep(ctx, e.Store.EventsDir); err != nil {
		e.Log(err)
	}
}

// adoptAll goes through all resident containers, as another den has left them.
func (e *Engine) adoptAll(ctx context.Context) error {
	ids, err := e.Store.Containers()
	if err != nil {
		return err
	}
	var again []*life
	alive := map[string]bool{}
	for _, id := range ids {
		l, err := e.life(id)
		if errdefs.IsNotFound(err) { // a den died before it wrote a record
			_, err = e.summary(id)
			l = nil
		}
		if err != nil {
			// One that cannot be read must not keep the others from starting.
			e.Log(fmt.Errorf("container %s: %w", id[:12], err))
			continue
		}
		if l == nil {
			continue
		}
		restart, err := l.adopt(ctx)
		if err != nil {
			l.complain(err)
			continue
		}
		l.mu.Lock()
		alive[id] = l.run != nil
		l.mu.Unlock()
		if restart {
			again = append(again, l)
		}
	}
	e.reconcileNetworks(ctx, alive)
	for _, l := range again {
		e.residents.wg.Go(func() {
			if l.lock(ctx) != nil {
				return
			}
			defer l.unlock()
			if r := l.snapshot(); r.alive() || l.gone() {
				return
			}
			l.complain(l.again())
		})
	}
	return nil
}

// adopt takes over a container as another den has left it; true says that it is to be
// started again.
func (l *life) adopt(ctx context.Context) (restart bool, err error) {
	dir, err := l.engine.Store.OpenContainer(l.id)
	if err != nil {
		return false, err
	}
	box := filepath.Join(dir.Path(), sandboxDir)
	_, err = os.Lstat(box)
	began := err == nil
	if began {
		adopted, err := l.adoptRun(ctx, dir, box)
		if adopted || err != nil {
			return false, err
		}
	}
	defer dir.Close()
	r := l.snapshot()
	if !began && !r.alive() && r.State != stateRestarting {
		if r.State == stateExited && r.Remove {
			return false, l.removeItself(ctx)
		}
		return r.State == stateExited && l.wantsRestartAtBoot(&r), nil
	}
	return l.died(ctx, dir)
}

// wantsRestartAtBoot is docker's: what a person has stopped stays so, but for always.
func (l *life) wantsRestartAtBoot(r *record) bool {
	if r.Started.IsZero() || r.Stopped && l.request.Restart.Name == "on-failure" {
		return false
	}
	return l.wantsRestart(r)
}

// adoptRun takes over the sandbox, if there is one.
func (l *life) adoptRun(ctx context.Context, dir *store.ContainerDir, box string) (bool, error) {
	adopter, ok := l.engine.Exec.(sandbox.Adopter)
	if !ok {
		return false, nil
	}
	sb, err := adopter.Adopt(ctx, l.id, box)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, errors.Join(err, dir.Close())
	}
	// If it has ended meanwhile the lock is free, and nobody is to take it for dead.
	_, err = dir.TryLock()
	r := &run{life: l, sb: sb, lasting: true, ended: make(chan struct{})}
	r.c = &container{
		engine: l.engine, request: &l.request.RunRequest, more: l.request, image: l.image, config: l.config,
		dir: dir, record: l.record,
	}
	if err == nil {
		err = failpoint.Hit("engine.adopt.streams")
	}
	if err == nil {
		r.streams, err = r.c.adoptStreams(sb)
	}
	if err == nil {
		r.control, err = r.c.listen()
	}
	if err == nil {
		err = r.c.openView(ctx)
	}
	if err != nil {
		return false, errors.Join(err, r.c.finish(false))
	}
	l.mu.Lock()
	if !l.record.alive() { // it was started, and its den was killed before it wrote so
		l.record.State, l.record.Started = stateRunning, time.Now().UTC()
	}
	l.record.Pid = sb.Pid()
	r.c.record = l.record
	err = l.record.write(dir.Path())
	r.stopping = l.record.Stopped
	l.run = r
	r.begin()
	l.mu.Unlock()
	l.complain(err)
	l.engine.residents.wg.Go(r.follow)
	return true, nil
}

// died accounts for a container whose sandbox is gone without a trace.
func (l *life) died(ctx context.Context, dir *store.ContainerDir) (restart bool, err error) {
	r := l.snapshot()
	if r.alive() {
		r.Finished, r.ExitCode, r.Health = time.Now().UTC(), killedCode, ended(r.Health)
	}
	wasAlive := r.alive()
	if r.State != stateCreated {
		r.State = stateExited
	}
	r.Pid = 0
	if err := r.write(dir.Path()); err != nil {
		return false, err
	}
	l.mu.Lock()
	l.record, l.code = r, r.ExitCode
	l.mu.Unlock()
	c := &container{engine: l.engine, dir: dir, record: r}
	errs := []error{c.writeExit(), sys.RemoveTree(filepath.Join(dir.Path(), sandboxDir))}
	// What its den had taken out of the sandbox, to read it.
	looks, _ := fs.Glob(os.DirFS(dir.Path()), lookDir+"*") // the pattern is well-formed
	for _, look := range looks {
		errs = append(errs, sys.RemoveTree(filepath.Join(dir.Path(), look)))
	}
	if err := errors.Join(errs...); err != nil {
		return false, err
	}
	if wasAlive {
		l.engine.containerEvent(&r, "die", map[string]string{"exitCode": fmt.Sprint(r.ExitCode)})
	}
	if r.Remove && r.State != stateCreated {
		return false, l.removeItself(ctx)
	}
	return r.State == stateExited && l.wantsRestartAtBoot(&r), nil
}

// Shutdown ends containers, each with its stop signal and in its time, and no longer
// restarts any: all with EndAll, else those that cannot outlive this process.
func (e *Engine) Shutdown(ctx context.Context, mode ShutdownMode) error {
	e.residents.mu.Lock()
	e.residents.closing = true
	var lives []*life
	for _, l := range e.residents.lives {
		lives = append(lives, l)
	}
	e.residents.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(lives))
	for i, l := range lives {
		l.mu.Lock()
		cancel, idle := l.stopRestart, l.run == nil && !l.starting
		l.mu.Unlock()
		if cancel != nil {
			cancel() // it stays restarting, for the next den
		}
		if !idle {
			wg.Go(func() { errs[i] = l.shutdown(ctx, mode) })
		}
	}
	wg.Wait()
	e.residents.clearing.Wait()
	return errors.Join(errs...)
}

// shutdown ends what runs, or is being started; its restart policy holds when the next den
// comes. It returns when a container that is not to stay is gone.
func (l *life) shutdown(ctx context.Context, mode ShutdownMode) error {
	pass := func() {
		if l.lock(ctx) == nil {
			l.unlock()
		}
	}
	l.mu.Lock()
	starting := l.starting
	l.mu.Unlock()
	if starting {
		pass()
	}
	r, err := l.running()
	if err != nil || r.lasting && mode != EndAll {
		return nil //nolint:nilerr // what does not run needs no end
	}
	defer pass()
	l.engine.thaw(ctx, r)
	l.signal(r, r.c.stopSignal())
	rec := l.snapshot()
	bounded, cancel := StopOptions{}.within(ctx, &rec)
	defer cancel()
	if r.awaitEnd(bounded) == nil {
		return nil
	}
	l.signal(r, unix.SIGKILL)
	patience, done := context.WithTimeout(context.WithoutCancel(ctx), defaultStop)
	defer done()
	return r.awaitEnd(patience)
}

// A ShutdownMode says which containers Shutdown ends.
type ShutdownMode int

// The modes of Shutdown.
const (
	EndDependent ShutdownMode = iota
	EndAll
)
