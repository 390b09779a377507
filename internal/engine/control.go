package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/store"
)

// controlFile is a FIFO through which other den processes ask the one that runs
// the container for a signal: process ids mean nothing across namespaces.
const controlFile = "control"

// pollEvery is how often a waiter looks whether a container's owner is gone.
const pollEvery = 50 * time.Millisecond

// control reads requests until stop is called. Each is one line with the number
// of a signal.
func (c *container) control(deliver func(unix.Signal)) (stop func(), err error) {
	file := filepath.Join(c.dir.Path(), controlFile)
	if err := unix.Mkfifo(file, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("container %s: control: %w", c.record.ID, err)
	}
	// Read and write: the FIFO has no end of file while a den listens.
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("container %s: control: %w", c.record.ID, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if sig, err := ParseSignal(lines.Text()); err == nil {
				deliver(sig)
			}
		}
	}()
	return func() { f.Close(); <-done }, nil
}

// A Summary is what lists show of a container.
type Summary struct {
	ID, Name, Image string
	Command         []string
	Labels          map[string]string
	Created         time.Time
	Started         time.Time
	Finished        time.Time
	// Status is "created", "running", "exited" or, when the den that ran it
	// is gone without a word, "dead".
	Status   string
	ExitCode int
}

// List returns this engine's containers, newest first, and cleans up those
// whose den died and that were to be removed.
func (e *Engine) List() ([]Summary, error) {
	ids, err := e.Store.Containers()
	if err != nil {
		return nil, err
	}
	var out []Summary
	for _, id := range ids {
		s, err := e.summary(id)
		if errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if s != nil {
			out = append(out, *s)
		}
	}
	slices.SortFunc(out, func(a, b Summary) int { return b.Created.Compare(a.Created) })
	return out, nil
}

func (e *Engine) summary(id string) (*Summary, error) {
	dir, err := e.Store.OpenContainer(id)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	r, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	s := &Summary{
		ID: r.ID, Name: r.Name, Image: r.Image, Command: r.Command, Labels: r.Labels,
		Created: r.Created, Started: r.Started, Finished: r.Finished, Status: string(r.State), ExitCode: r.ExitCode,
	}
	if r.State == stateExited {
		return s, nil
	}
	mine, err := dir.TryLock()
	if err != nil || !mine {
		return s, err
	}
	if r.Remove {
		return nil, e.removeDir(dir, r)
	}
	s.Status = "dead"
	return s, nil
}

func readRecord(dir *store.ContainerDir) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir.Path(), recordFile))
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("container %s: record: %w", dir.ID(), err)
	}
	return &r, nil
}

// Signal asks the den that runs the container to send it sig.
func (e *Engine) Signal(nameOrID string, sig unix.Signal) error {
	dir, err := e.open(nameOrID)
	if err != nil {
		return err
	}
	defer dir.Close()
	return signalDir(dir, sig)
}

func signalDir(dir *store.ContainerDir, sig unix.Signal) error {
	f, err := os.OpenFile(filepath.Join(dir.Path(), controlFile), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil { // ENXIO: nobody listens
		return fmt.Errorf("container %s is not running: %w", dir.ID(), errdefs.ErrFailedPrecondition)
	}
	_, err = fmt.Fprintf(f, "%d\n", int(sig))
	return errors.Join(err, f.Close())
}

func (e *Engine) open(nameOrID string) (*store.ContainerDir, error) {
	cid, err := e.Store.ContainerByName(nameOrID)
	if err != nil {
		return nil, fmt.Errorf("no such container: %s: %w", nameOrID, err)
	}
	return e.Store.OpenContainer(cid)
}

// Stop sends the container's stop signal and, after grace, kills it. A container
// that is not running is no error.
func (e *Engine) Stop(ctx context.Context, nameOrID string, grace time.Duration) error {
	// The den that runs it turns SIGTERM into the container's own stop signal.
	err := e.Signal(nameOrID, unix.SIGTERM)
	if errdefs.IsFailedPrecondition(err) {
		return nil
	}
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if _, err = e.Wait(bounded, nameOrID); err == nil || ctx.Err() != nil {
		return err
	}
	if err := e.Signal(nameOrID, unix.SIGKILL); err != nil && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	_, err = e.Wait(ctx, nameOrID)
	return err
}

// Wait returns when the container is not running, with its exit code.
func (e *Engine) Wait(ctx context.Context, nameOrID string) (int, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for seen := false; ; seen = true {
		dir, err := e.open(nameOrID)
		if seen && errdefs.IsNotFound(err) {
			return 0, nil // removed by --rm
		}
		if err != nil {
			return 0, err
		}
		mine, err := dir.TryLock()
		var code int
		if err == nil && mine {
			var r *record
			if r, err = readRecord(dir); err == nil {
				code = r.ExitCode
			}
		}
		dir.Close()
		if err != nil || mine {
			return code, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// Remove deletes a container that does not run; with force it is killed first.
func (e *Engine) Remove(ctx context.Context, nameOrID string, force bool) error {
	dir, err := e.open(nameOrID)
	if err != nil {
		return err
	}
	defer func() { dir.Close() }()
	mine, err := dir.TryLock()
	if err != nil {
		return err
	}
	if !mine {
		if !force {
			return fmt.Errorf("container %s is running: stop it before removal (den stop) or force the removal (den rm -f): %w", nameOrID, errdefs.ErrFailedPrecondition)
		}
		if err := signalDir(dir, unix.SIGKILL); err != nil && !errdefs.IsFailedPrecondition(err) {
			return err
		}
		if _, err := e.Wait(ctx, nameOrID); err != nil {
			return err
		}
		dir.Close()
		if dir, err = e.open(nameOrID); errdefs.IsNotFound(err) {
			return nil // it was to remove itself
		} else if err != nil {
			return err
		}
	}
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	return e.removeDir(dir, r)
}

func (e *Engine) removeDir(dir *store.ContainerDir, r *record) error {
	errs := []error{e.Store.UnnameContainer(r.Name), dir.Remove()}
	for _, v := range r.Volumes {
		errs = append(errs, e.Store.RemoveVolume(v))
	}
	return errors.Join(errs...)
}
