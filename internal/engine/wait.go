package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/store"
)

// pollEvery is how often a waiter looks whether a container's owner is gone.
const pollEvery = 20 * time.Millisecond

// settle is how long a lock that a passing reader may hold is waited for.
const settle = 5 * pollEvery

// awaitFree returns when nobody runs the container, because it ended or was
// removed. On return the lock is the caller's, until it closes dir, unless the
// container is gone.
func awaitFree(ctx context.Context, dir *store.ContainerDir) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		mine, err := dir.TryLock()
		if mine || err != nil {
			return err
		}
		if gone(dir) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// gone says that the container was removed. Its path is never used again.
func gone(dir *store.ContainerDir) bool {
	_, err := os.Lstat(dir.Path())
	return errors.Is(err, fs.ErrNotExist)
}

// Wait tells how the container ends, once what condition says is true. Whatever happens
// after Wait has returned is not missed. The channel gets one result.
func (e *Engine) Wait(ctx context.Context, nameOrID string, condition WaitCondition) (<-chan WaitResult, error) {
	switch condition {
	case "", WaitNotRunning, WaitNextExit, WaitRemoved:
	default:
		return nil, invalid("invalid condition: %q", condition)
	}
	l, err := e.resident(ctx, nameOrID)
	if errdefs.IsNotFound(err) {
		return e.waitDeparted(ctx, nameOrID, condition, err)
	}
	if err != nil {
		return nil, err
	}
	if l != nil {
		return l.wait(ctx, condition), nil
	}
	dir, err := e.open(nameOrID)
	if err != nil {
		return nil, err
	}
	code, err := os.Open(filepath.Join(dir.Path(), exitFile))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("container %s: exit code: %w", dir.ID(), err), dir.Close())
	}
	result := make(chan WaitResult, 1)
	go func() {
		defer dir.Close()
		defer code.Close()
		if err := awaitFree(ctx, dir); err != nil {
			result <- WaitResult{Err: err}
			return
		}
		result <- WaitResult{Code: readExit(code)}
	}()
	return result, nil
}

// Remove deletes a container that does not run; with Force it is killed first.
func (e *Engine) Remove(ctx context.Context, nameOrID string, o RemoveOptions) error {
	l, err := e.resident(ctx, nameOrID)
	if err != nil && !o.Link {
		return err
	}
	if o.Link {
		return e.removeLink(ctx, nameOrID)
	}
	if l != nil {
		return l.removeFor(ctx, o)
	}
	dir, err := e.open(nameOrID)
	if err != nil {
		return err
	}
	defer dir.Close()
	bounded, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := awaitFree(bounded, dir); err != nil && ctx.Err() == nil {
		if err := e.end(ctx, dir, o.Force); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if gone(dir) { // it was to remove itself
		return nil
	}
	return e.remove(dir)
}

// end kills a running container, if it may.
func (e *Engine) end(ctx context.Context, dir *store.ContainerDir, force bool) error {
	if !force {
		return &sentence{
			fmt.Sprintf("container %s is running: stop it first (den stop) or force the removal (den rm -f)", dir.ID()[:12]),
			errdefs.ErrFailedPrecondition,
		}
	}
	if err := ask(dir, fmt.Sprint(int(unix.SIGKILL))); err != nil && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	return awaitFree(ctx, dir)
}

// remove deletes a container whose lock the caller holds.
func (e *Engine) remove(dir *store.ContainerDir) error {
	r, err := readRecord(dir)
	if err != nil { // its den died before it wrote one, or the machine did
		return dir.Remove()
	}
	return e.removeDir(dir, r)
}

// wait tells how the container ends, once condition says is true.
func (l *life) wait(ctx context.Context, condition WaitCondition) <-chan WaitResult {
	l.mu.Lock()
	exits := l.exits
	result := make(chan WaitResult, 1)
	done := func() bool { // with mu
		switch condition {
		case WaitNextExit:
			return l.exits > exits || l.removed
		case WaitRemoved:
			return l.removed
		}
		return l.exits > exits || l.run == nil && l.record.State != stateRestarting || l.removed
	}
	if done() {
		result <- WaitResult{Code: l.code}
		l.mu.Unlock()
		return result
	}
	changed := l.change()
	l.mu.Unlock()
	go func() {
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				result <- WaitResult{Err: context.Cause(ctx)}
				return
			}
			l.mu.Lock()
			if done() {
				result <- WaitResult{Code: l.code}
				l.mu.Unlock()
				return
			}
			changed = l.change()
			l.mu.Unlock()
		}
	}()
	return result
}

// removeFor removes the container for a person.
func (l *life) removeFor(ctx context.Context, o RemoveOptions) error {
	for {
		if err := l.endFor(ctx, o); err != nil {
			return err
		}
		if again, err := l.removeEnded(ctx, o); !again {
			return err
		}
	}
}

// endFor sees to it that the container does not run.
func (l *life) endFor(ctx context.Context, o RemoveOptions) error {
	l.mu.Lock()
	// One that has ended, as everybody can see, while that is still accounted for is waited for.
	runs := l.run != nil && l.record.alive() || l.record.State == stateRestarting || l.starting && o.Force
	paused := l.record.State == statePaused
	l.mu.Unlock()
	if !runs {
		return nil
	}
	if !o.Force {
		state := "running"
		if paused {
			state = "paused"
		}
		return conflict("cannot remove container %q: container is %s: stop the container before removing or force remove", l.snapshot().Name, state)
	}
	r, err := l.ending(ctx)
	if r == nil || err != nil {
		return err
	}
	l.engine.thaw(ctx, r)
	l.signal(r, unix.SIGKILL)
	return r.awaitEnd(ctx)
}

// removeEnded removes a container that has ended; true says that somebody has started it again.
func (l *life) removeEnded(ctx context.Context, o RemoveOptions) (again bool, err error) {
	if err := l.lock(ctx); err != nil {
		return false, err
	}
	defer l.unlock()
	l.mu.Lock()
	gone, runs := l.removed, l.run != nil
	l.mu.Unlock()
	switch {
	case gone && o.Force:
		return false, nil // it removed itself
	case gone:
		return false, notFound("No such container: %s", l.id)
	case runs:
		return true, nil
	}
	return false, l.remove(ctx, o)
}

// remove removes the container, which does not run. The caller holds op.
func (l *life) remove(ctx context.Context, o RemoveOptions) error {
	dir, err := l.kept(ctx)
	if err != nil {
		return err
	}
	defer dir.Close()
	l.cancelRestart()
	r := l.snapshot()
	volumes := r.Volumes
	if !o.Volumes {
		r.Volumes = nil
	}
	if err := l.engine.removeDir(dir, &r); err != nil && !gone(dir) {
		return err
	} else if err != nil {
		l.complain(err)
	}
	if o.Volumes {
		for _, v := range volumes {
			l.engine.volumeEvent(v, "destroy", nil)
		}
	}
	l.mu.Lock()
	l.removed = true
	for _, a := range l.waiting {
		a.end()
	}
	l.waiting = nil
	l.notify()
	destroyed := eventOf(&r, "destroy", nil)
	if l.departing {
		code := r.ExitCode
		destroyed.Departed = &code
	}
	l.mu.Unlock()
	l.engine.Emit(destroyed)
	l.engine.forget(l)
	l.engine.execs.forget(l.id)
	return nil
}

// removeLink takes a link out of what a container was asked for.
func (e *Engine) removeLink(ctx context.Context, path string) error {
	name, alias, ok := strings.Cut(trimSlash(path), "/")
	if !ok {
		return invalid("Bad parameters: want /CONTAINER/ALIAS")
	}
	l, err := e.mine(ctx, name)
	if err != nil {
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	next := *l.request
	next.Links = slices.DeleteFunc(slices.Clone(next.Links), func(link string) bool {
		return link == alias || strings.HasSuffix(link, ":"+alias)
	})
	if len(next.Links) == len(l.request.Links) {
		return notFound("no link %s of container %s", alias, name)
	}
	return l.keepRequest(&next)
}

// removeDir deletes a container, with its name and its anonymous volumes.
func (e *Engine) removeDir(dir *store.ContainerDir, r *record) error {
	var errs []error
	// A den that died in here may have freed the name already, and another
	// container may have it now. While the lock is held nobody else frees it.
	if owner, err := e.Store.ContainerByName(r.Name); err == nil && owner == r.ID {
		errs = append(errs, e.Store.UnnameContainer(r.Name))
	}
	errs = append(errs, failpoint.Hit("engine.remove.dir"))
	for _, v := range r.Volumes { // while there is a record that names them, whoever dies now
		if err := e.Store.RemoveVolume(v); !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	clear, err := dir.Discard(logDir, discardedDir) // a client that is slow has yet to read the end
	if errs = append(errs, err); err == nil {
		errs = append(errs, e.clear(clear))
	}
	return errors.Join(errs...)
}
