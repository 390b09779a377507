package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"den/internal/failpoint"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/sys"
)

// Docker's times between restarts (moby restartmanager): a run of healthyRun begins anew.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
	healthyRun   = 10 * time.Second
)

// startSettles is when the record of a start is written: a program that has ended before
// needs none.
const startSettles = 20 * time.Millisecond

// follow goes with a run to its end and accounts for it.
func (r *run) follow() {
	writing := time.AfterFunc(startSettles, func() { r.life.complain(r.writeStarted()) })
	// It ends with the program; Shutdown and kill -9 end that.
	exit, err := r.sb.Wait(context.Background())
	if err != nil {
		r.life.complain(err)
		if exit == (sandbox.Exit{}) {
			exit.Code = killedCode
		}
	}
	writing.Stop()
	l := r.life
	r.health.stop()
	l.complain(r.streams.finish())
	_ = l.lock(context.Background()) // which never ends
	defer l.unlock()
	restart := l.account(r, exit)
	switch {
	case restart > 0:
		l.restartAfter(restart)
	case r.c.record.Remove: // as account has it
		l.complain(l.removeItself(context.Background()))
	}
}

// account keeps how a run ended and gives back what it had. It returns the time after
// which the container is to start again; 0 is never. The caller holds op.
func (l *life) account(r *run, exit sandbox.Exit) time.Duration {
	ctx := context.Background()
	l.complain(l.keepChanges(ctx, r))
	l.mu.Lock()
	next := l.record
	next.Finished, next.Pid, next.Health = time.Now().UTC(), 0, ended(next.Health)
	next.ExitCode, next.OOMKilled, next.State = exit.Code, exit.OOMKilled, stateExited
	after := l.restartDelay(r, &next)
	if after > 0 {
		next.State = stateRestarting
		next.RestartCount++
	}
	l.record, r.c.record, l.code = next, next, exit.Code
	r.unwritten = false
	l.mu.Unlock()
	l.complain(failpoint.Hit("engine.end.record"))
	errs := []error{r.c.writeExit()}
	stays := !next.Remove || after > 0 // or the next moment it is gone
	if stays {
		errs = append(errs, next.write(r.c.dir.Path()))
	}
	errs = append(errs, failpoint.Hit("engine.end.recorded"), r.release(ctx))
	if stays {
		errs = append(errs, sys.RemoveTree(filepath.Join(r.c.dir.Path(), sandboxDir)))
	}
	l.complain(errors.Join(errs...))
	l.settle(r, after > 0 || next.Remove)
	if exit.OOMKilled {
		l.engine.containerEvent(&next, "oom", nil)
	}
	l.engine.containerEvent(&next, "die", map[string]string{
		"exitCode":     fmt.Sprint(exit.Code),
		"execDuration": fmt.Sprint(int(next.Finished.Sub(next.Started).Seconds())),
	})
	l.mu.Lock()
	l.exits++
	l.run = nil
	l.notify()
	l.mu.Unlock()
	close(r.ended)
	return after
}

// settle closes the container, but for its lock if it is about to start again, or to be removed.
func (l *life) settle(r *run, goesOn bool) {
	if goesOn {
		l.mu.Lock()
		l.dir, r.c.dir = r.c.dir, nil
		l.mu.Unlock()
	}
	l.complain(r.c.finish(false))
}

// keepChanges makes of what the sandbox has left a tree like the others.
func (l *life) keepChanges(ctx context.Context, r *run) error {
	if r.c.active == nil {
		return nil
	}
	if _, continues := l.engine.Driver.(snapshot.Continuer); continues {
		return nil
	}
	err := l.engine.Driver.Changes(ctx, r.c.active)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it ended without a word, and what it wrote is lost
	}
	return err
}

// restartDelay is docker's: when to start again; 0 is never. The caller holds mu.
func (l *life) restartDelay(r *run, rec *record) time.Duration {
	if r.stopping || l.removed || l.engine.closing() || !l.wantsRestart(rec) {
		return 0
	}
	if rec.Finished.Sub(rec.Started) >= healthyRun {
		l.backoff = 0
	}
	l.backoff = min(max(2*l.backoff, firstBackoff), lastBackoff)
	return l.backoff
}

// wantsRestart says what the restart policy says of a container that has ended.
func (l *life) wantsRestart(rec *record) bool {
	switch p := l.request.Restart; p.Name {
	case "always":
		return true
	case "unless-stopped":
		return !rec.Stopped
	case "on-failure":
		return rec.ExitCode != 0 && (p.Max == 0 || rec.RestartCount < p.Max)
	}
	return false
}

// restartAfter starts the container again when its time has come. The caller holds op.
func (l *life) restartAfter(d time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	l.mu.Lock()
	l.stopRestart = cancel
	l.mu.Unlock()
	l.engine.residents.wg.Go(func() {
		defer cancel()
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if err := l.lock(ctx); err != nil {
			return
		}
		defer l.unlock()
		if ctx.Err() != nil || l.snapshot().State != stateRestarting {
			return
		}
		l.mu.Lock()
		l.stopRestart = nil
		l.mu.Unlock()
		l.complain(l.again())
	})
}

// again starts the container once more, or waits longer if it cannot be started. The
// caller holds op.
func (l *life) again() error {
	err := l.start(context.Background())
	if err == nil {
		return nil
	}
	l.mu.Lock()
	next := l.record
	retry := !l.removed && !l.engine.closing() && l.wantsRestart(&next)
	if retry {
		l.backoff = min(max(2*l.backoff, firstBackoff), lastBackoff)
	}
	d := l.backoff
	l.mu.Unlock()
	if !retry {
		return err
	}
	if uerr := l.update(func(r *record) { r.State = stateRestarting; r.RestartCount++ }); uerr != nil {
		return errors.Join(err, uerr)
	}
	l.restartAfter(d)
	return err
}

// cancelRestart makes of a container that waits for its restart one that has ended. The
// caller holds op, or the restart is held up.
func (l *life) cancelRestart() {
	l.mu.Lock()
	cancel, dir := l.stopRestart, l.dir
	l.stopRestart, l.dir = nil, nil
	waits := l.record.State == stateRestarting
	l.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if waits {
		l.complain(l.update(func(r *record) { r.State = stateExited }))
	}
	if dir != nil {
		l.complain(dir.Close())
	}
}

func (e *Engine) closing() bool {
	e.residents.mu.Lock()
	defer e.residents.mu.Unlock()
	return e.residents.closing
}
