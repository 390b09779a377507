package sentry

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
)

// What a sandbox can do beyond Start and Wait.
var (
	_ sandbox.Execer  = (*running)(nil)
	_ sandbox.Plugger = (*running)(nil)
)

// call asks the sentry for something that it does at once or as long as ctx lasts.
func (s *running) call(ctx context.Context, what string, c *command, files ...*os.File) (*event, error) {
	e, err := s.answer(ctx, c, files)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %s: %w", s.id, what, err)
	}
	return e, nil
}

func (s *running) answer(ctx context.Context, c *command, files []*os.File) (*event, error) {
	l, err := s.dial()
	if err != nil {
		return nil, err
	}
	defer l.hangUp()
	defer context.AfterFunc(ctx, l.hangUp)()
	e, err := l.ask(c, files)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case e.Failed != nil:
		return nil, e.Failed.rebuild("")
	case !e.Done:
		return nil, errors.New("the sentry did not say that it is done")
	}
	return e, nil
}

// Plug adds a network device to a sandbox with a network stack of its own.
func (s *running) Plug(ctx context.Context, i oci.Interface) error {
	d, err := deviceOf(i, 0)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	_, err = s.call(ctx, "plug in "+i.Name, &command{Plug: &d}, i.Cable)
	return classed(err)
}

// Unplug takes a network device that den plugged in out of it.
func (s *running) Unplug(ctx context.Context, name string) error {
	if name == "" {
		return fmt.Errorf("sandbox %s: unplug: no name: %w", s.id, errdefs.ErrInvalidArgument)
	}
	_, err := s.call(ctx, "unplug "+name, &command{Unplug: name})
	return classed(err)
}

// classed gives errors of devices the class that callers branch on.
func classed(err error) error {
	for _, c := range []struct {
		no    unix.Errno
		class error
	}{
		{unix.ENODEV, errdefs.ErrNotFound}, {unix.EEXIST, errdefs.ErrAlreadyExists}, {unix.EOPNOTSUPP, errdefs.ErrFailedPrecondition},
	} {
		if errors.Is(err, c.no) {
			return &classError{err, c.class}
		}
	}
	return err
}

// A classError is an error of a class that its text does not name.
type classError struct {
	error
	class error
}

// Unwrap returns the error and its class.
func (e *classError) Unwrap() []error { return []error{e.error, e.class} }
