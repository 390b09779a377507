package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
func (e *Engine) Wait(ctx context.Context, nameOrID string, _ WaitCondition) (<-chan WaitResult, error) {
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

// removeDir deletes a container, with its name and its anonymous volumes.
func (e *Engine) removeDir(dir *store.ContainerDir, r *record) error {
	var errs []error
	// A den that died in here may have freed the name already, and another
	// container may have it now. While the lock is held nobody else frees it.
	if owner, err := e.Store.ContainerByName(r.Name); err == nil && owner == r.ID {
		errs = append(errs, e.Store.UnnameContainer(r.Name))
	}
	errs = append(errs, failpoint.Hit("engine.remove.dir"), dir.Remove())
	for _, v := range r.Volumes {
		if err := e.Store.RemoveVolume(v); !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
