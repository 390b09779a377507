package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// stop ends a resident container. Who has ended already is an error of class
// errdefs.ErrNotModified.
func (l *life) stop(ctx context.Context, o StopOptions) error {
	r, err := l.ending(ctx)
	if err != nil {
		return err
	}
	if r == nil {
		return notModified("container %s is already stopped", l.id)
	}
	sig, err := o.signal(r.c)
	if err != nil {
		return err
	}
	l.engine.thaw(ctx, r)
	l.signal(r, sig)
	rec := l.snapshot()
	bounded, cancel := o.within(ctx, &rec)
	defer cancel()
	if err := r.awaitEnd(bounded); err != nil {
		if ctx.Err() != nil {
			return err
		}
		l.signal(r, unix.SIGKILL)
		if err := r.awaitEnd(ctx); err != nil {
			return err
		}
	}
	l.tell("stop", nil)
	return nil
}

func (o StopOptions) signal(c *container) (unix.Signal, error) {
	if o.Signal == "" {
		return c.stopSignal(), nil
	}
	return ParseSignal(o.Signal)
}

// ending notes that a person ends the container, so that it is not started again, and
// returns what runs; nil if nothing does.
func (l *life) ending(ctx context.Context) (*run, error) {
	l.mu.Lock()
	r := l.run
	if r != nil {
		r.stopping = true
	}
	waits, starting := l.record.State == stateRestarting, l.starting
	l.mu.Unlock()
	if r != nil {
		// The record says so before the end does, whoever dies now.
		return r, l.update(func(rec *record) { rec.Stopped = true })
	}
	if !waits && !starting {
		return nil, nil
	}
	if err := l.lock(ctx); err != nil {
		return nil, err
	}
	defer l.unlock()
	l.cancelRestart()
	l.mu.Lock()
	r = l.run // it was just started
	if r != nil {
		r.stopping = true
	}
	l.mu.Unlock()
	if r == nil && !waits {
		return nil, nil // the start has failed
	}
	return r, l.update(func(rec *record) { rec.Stopped = true })
}

// awaitEnd returns when the run is accounted for.
func (r *run) awaitEnd(ctx context.Context) error {
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// signal sends a signal, and says so. That the program has ended shows elsewhere.
func (l *life) signal(r *run, sig unix.Signal) {
	_ = r.sb.Signal(sig)
	l.tell("kill", map[string]string{"signal": strconv.Itoa(int(sig))})
}

// Restart stops a container if it runs, and starts it.
func (e *Engine) Restart(ctx context.Context, nameOrID string, o StopOptions) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	removes := false
	if r, err := l.running(); err == nil {
		removes = r.c.request.Remove
	}
	if removes { // not in between
		l.setRemove(false)
	}
	err = l.stop(ctx, o)
	if removes { // what starts writes it down, and goes at its end, as one that cannot start does
		l.setRemove(true)
	}
	if err != nil && !isNotModified(err) {
		return err
	}
	if err := e.Start(ctx, l.id); err != nil && !isNotModified(err) {
		return err
	}
	l.tell("restart", nil)
	return nil
}

func (l *life) setRemove(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record.Remove = on
}

// Kill sends a signal ("SIGTERM", "term", "15"; empty is SIGKILL).
func (e *Engine) Kill(ctx context.Context, nameOrID, signal string) error {
	sig := unix.SIGKILL
	if signal != "" {
		var err error
		if sig, err = ParseSignal(signal); err != nil {
			return err
		}
	}
	l, err := e.resident(ctx, nameOrID)
	if err != nil {
		return err
	}
	if l == nil {
		return e.ask(nameOrID, fmt.Sprint(int(sig)))
	}
	r, err := l.running()
	if err != nil {
		return conflict("cannot kill container: %s: container %s is not running", nameOrID, l.id)
	}
	if sig == unix.SIGKILL || sig == r.c.stopSignal() {
		if _, err := l.ending(ctx); err != nil {
			return err
		}
	}
	if sig == unix.SIGKILL {
		e.thaw(ctx, r)
	}
	l.signal(r, sig)
	if sig == unix.SIGKILL {
		// docker's kill returns when the container has ended, if that is soon.
		bounded, cancel := context.WithTimeout(ctx, defaultStop)
		defer cancel()
		_ = r.awaitEnd(bounded)
	}
	return nil
}

// Pause stops all processes of a container until Resume.
func (e *Engine) Pause(ctx context.Context, nameOrID string) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	r, err := l.running()
	if err != nil {
		return err
	}
	if l.snapshot().State == statePaused {
		return conflict("container %s is already paused", l.id)
	}
	p, ok := r.sb.(sandbox.Pauser)
	if !ok {
		return unsupported("pause %s: containers cannot be paused on this rung", nameOrID)
	}
	if err := p.Pause(ctx); err != nil {
		return err
	}
	if err := l.update(func(rec *record) { rec.State = statePaused }); err != nil {
		return errors.Join(err, p.Resume(ctx))
	}
	l.tell("pause", nil)
	return nil
}

// Resume lets a paused container go on.
func (e *Engine) Resume(ctx context.Context, nameOrID string) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	r, err := l.running()
	if err != nil {
		return err
	}
	if l.snapshot().State != statePaused {
		return conflict("container %s is not paused", l.id)
	}
	p, ok := r.sb.(sandbox.Pauser)
	if !ok {
		return unsupported("resume %s: containers cannot be paused on this rung", nameOrID)
	}
	if err := p.Resume(ctx); err != nil {
		return err
	}
	if err := l.update(func(rec *record) { rec.State = stateRunning }); err != nil {
		return err
	}
	l.tell("unpause", nil)
	return nil
}

// thaw lets a paused container go on, because it is to end.
func (e *Engine) thaw(ctx context.Context, r *run) {
	if r.life.snapshot().State != statePaused {
		return
	}
	if p, ok := r.sb.(sandbox.Pauser); ok {
		r.life.complain(p.Resume(ctx))
		r.life.complain(r.life.update(func(rec *record) { rec.State = stateRunning }))
	}
}

// Rename gives a container another name.
func (e *Engine) Rename(ctx context.Context, nameOrID, name string) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	if name = trimSlash(name); name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	old := l.snapshot().Name
	if old == name {
		return invalid("Renaming a container with the same name as its current name")
	}
	if _, err := e.nameContainer(ctx, name, l.id); err != nil {
		return err
	}
	if err := l.update(func(r *record) { r.Name = name }); err != nil {
		return errors.Join(err, e.Store.UnnameContainer(name))
	}
	l.tell("rename", map[string]string{"oldName": "/" + old})
	return e.Store.UnnameContainer(old)
}

// Update changes a container's limits and restart policy.
func (e *Engine) Update(ctx context.Context, nameOrID string, u *UpdateRequest) (warnings []string, err error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if err := l.lock(ctx); err != nil {
		return nil, err
	}
	defer l.unlock()
	next := *l.request
	limited := u.Limits != nil && *u.Limits != next.Limits
	if limited {
		next.Limits = *u.Limits
	}
	if u.Restart != nil {
		next.Restart = *u.Restart
	}
	if u.Door != nil {
		next.Door = u.Door
	}
	if err := errors.Join(next.checkRestart(), next.checkLimits()); err != nil {
		return nil, err
	}
	if limited {
		if warnings, err = l.limit(ctx, next.Limits); err != nil {
			return nil, err
		}
	}
	if err := l.keepRequest(&next); err != nil {
		return nil, err
	}
	l.tell("update", nil)
	return warnings, nil
}

// limit puts limits in force in what runs. That there can be none there is a warning, as it is at the start.
func (l *life) limit(ctx context.Context, limits Limits) (warnings []string, err error) {
	r, err := l.running()
	if err != nil {
		return nil, nil //nolint:nilerr // they are in force from the next start on
	}
	up, ok := r.sb.(sandbox.Limiter)
	if !ok {
		return []string{"The new limits take effect when the container is restarted."}, nil
	}
	err = up.SetLimits(ctx, resources(limits))
	switch {
	case errdefs.IsUnavailable(err):
		return []string{err.Error()}, nil
	case errors.Is(err, os.ErrProcessDone):
		return nil, nil
	}
	return nil, err
}

// keepRequest replaces what the container was asked for. The caller holds op.
func (l *life) keepRequest(next *CreateRequest) error {
	dir, err := l.engine.Store.OpenContainer(l.id)
	if err != nil {
		return missing(l.id, err)
	}
	if err := errors.Join(writeKept(dir, requestFile, next), dir.Close()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.request = next
	return nil
}

// Resize tells a container's terminal its size.
func (e *Engine) Resize(ctx context.Context, nameOrID string, size Size) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	r, err := l.running()
	if err != nil {
		return conflict("Container %s is not running", l.id)
	}
	if err := r.sb.Resize(size.Rows, size.Cols); err != nil {
		return err
	}
	l.tell("resize", map[string]string{
		"height": strconv.Itoa(int(size.Rows)), "width": strconv.Itoa(int(size.Cols)),
	})
	return nil
}
