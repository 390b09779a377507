package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/store"
)

// controlFile is a FIFO through which other den processes ask the one that runs
// the container for a signal: process ids mean nothing across namespaces. A
// request is one line: the number of a signal, or controlStop.
const (
	controlFile = "control"
	controlStop = "stop-signal"
)

// listen opens the container's FIFO. Requests wait in it until they are served.
func (c *container) listen() (*os.File, error) {
	file := filepath.Join(c.dir.Path(), controlFile)
	if err := unix.Mkfifo(file, 0o600); err != nil && (!c.record.Resident || !errors.Is(err, os.ErrExist)) {
		return nil, fmt.Errorf("container %s: control: %w", c.record.ID, err)
	}
	// Read and write: the FIFO has no end of file while a den listens.
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("container %s: control: %w", c.record.ID, err)
	}
	return f, nil
}

// serve delivers requests until f is closed.
func (c *container) serve(f *os.File, deliver func(unix.Signal)) {
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if lines.Text() == controlStop {
			deliver(c.stopSignal())
		} else if sig, err := ParseSignal(lines.Text()); err == nil {
			deliver(sig)
		}
	}
}

// stopSignal is what den stop sends: the request's, else the image's.
func (c *container) stopSignal() unix.Signal {
	sig, err := ParseSignal(first(c.request.StopSignal, c.config.Config.StopSignal, "SIGTERM"))
	if err != nil { // an image may say anything
		return unix.SIGTERM
	}
	return sig
}

// Signal asks the den that runs the container to send it sig.
func (e *Engine) Signal(nameOrID string, sig unix.Signal) error {
	return e.ask(nameOrID, fmt.Sprint(int(sig)))
}

func (e *Engine) ask(nameOrID, request string) error {
	dir, err := e.open(nameOrID)
	if err != nil {
		return err
	}
	return errors.Join(ask(dir, request), dir.Close())
}

func ask(dir *store.ContainerDir, request string) error {
	f, err := os.OpenFile(filepath.Join(dir.Path(), controlFile), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil { // ENXIO: nobody listens; ENOENT: nobody ever did, or it is gone
		return &sentence{fmt.Sprintf("container %s is not running", dir.ID()[:12]), errdefs.ErrFailedPrecondition}
	}
	_, err = fmt.Fprintln(f, request)
	return errors.Join(err, f.Close())
}

func (e *Engine) open(nameOrID string) (*store.ContainerDir, error) {
	cid, err := e.Store.ContainerByName(nameOrID)
	if err != nil {
		return nil, err
	}
	return e.Store.OpenContainer(cid)
}

// find is the id of the container with that name, id, or beginning of an id; a name may
// begin with docker's slash.
func (e *Engine) find(nameOrID string) (string, error) {
	if nameOrID == "" {
		return "", invalid("invalid name or ID supplied: %q", nameOrID)
	}
	id, err := e.Store.ContainerByName(trimSlash(nameOrID))
	return id, missing(nameOrID, err)
}

func trimSlash(name string) string { return strings.TrimPrefix(name, "/") }

// defaultStop is docker's patience with a container that is to stop.
const defaultStop = 10 * time.Second

// Stop sends the container's stop signal and, if it does not end in time, kills it. A
// container that does not run is an error of class errdefs.ErrNotModified.
func (e *Engine) Stop(ctx context.Context, nameOrID string, o StopOptions) error {
	request := controlStop
	if o.Signal != "" {
		sig, err := ParseSignal(o.Signal)
		if err != nil {
			return err
		}
		request = fmt.Sprint(int(sig))
	}
	l, err := e.resident(ctx, nameOrID)
	if err != nil {
		return err
	}
	if l != nil {
		return l.stop(ctx, o)
	}
	dir, err := e.open(nameOrID)
	if err != nil {
		return err
	}
	defer dir.Close()
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	if err := ask(dir, request); errdefs.IsFailedPrecondition(err) {
		return notModified("container %s is already stopped", dir.ID())
	} else if err != nil {
		return err
	}
	bounded, cancel := o.within(ctx, r)
	defer cancel()
	if err := awaitFree(bounded, dir); err == nil || ctx.Err() != nil {
		return err
	}
	if err := ask(dir, fmt.Sprint(int(unix.SIGKILL))); err != nil && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	return awaitFree(ctx, dir)
}

// within ends ctx when the program has had its time to stop.
func (o StopOptions) within(ctx context.Context, r *record) (context.Context, context.CancelFunc) {
	switch {
	case o.Seconds == nil:
		return context.WithTimeout(ctx, r.patience())
	case *o.Seconds < 0:
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(*o.Seconds)*time.Second)
}

// serveControl does what other den processes ask for, until the control is closed.
func (r *run) serveControl() {
	lines := bufio.NewScanner(r.control)
	for lines.Scan() {
		sig, err := ParseSignal(lines.Text())
		stop := lines.Text() == controlStop
		if stop {
			sig, err = r.c.stopSignal(), nil
		}
		if err != nil {
			continue
		}
		if stop || sig == unix.SIGKILL {
			if _, err := r.life.ending(context.Background()); err != nil {
				r.life.complain(err)
			}
		}
		r.life.signal(r, sig)
	}
}
