package sentry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
)

// What a sandbox can do beyond Start and Wait.
var (
	_ sandbox.Execer    = (*running)(nil)
	_ sandbox.Plugger   = (*running)(nil)
	_ sandbox.Filer     = (*running)(nil)
	_ sandbox.Changer   = (*running)(nil)
	_ sandbox.Pauser    = (*running)(nil)
	_ sandbox.Inspector = (*running)(nil)
	_ sandbox.Limiter   = (*running)(nil)
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

// Pause stops all processes. It returns when none runs.
func (s *running) Pause(ctx context.Context) error {
	_, err := s.call(ctx, "pause", &command{Pause: true})
	return err
}

// Resume lets them go on.
func (s *running) Resume(ctx context.Context) error {
	_, err := s.call(ctx, "resume", &command{Resume: true})
	return err
}

// SetLimits puts other limits of memory, processes and processors in force.
func (s *running) SetLimits(ctx context.Context, r *specs.LinuxResources) error {
	sizes, quota, period := limitsOf(r)
	if s.joins { // those of the sandbox that was there before hold for both
		sizes.MaxMemoryBytes, quota, period = 0, 0, 0
	}
	s.limiting.Lock()
	defer s.limiting.Unlock()
	bounds := s.bounds.now()
	bounds.applyTo(&sizes)
	if _, err := s.call(ctx, "limits", &command{Limits: &sizes}); err != nil {
		return err
	}
	s.bounds.ask(bounds.asked)
	s.limit.set(quota, period)
	return nil
}

// Stats is what the sandbox uses.
func (s *running) Stats(ctx context.Context) (sandbox.Stats, error) {
	e, err := s.call(ctx, "statistics", &command{Stats: true})
	if err != nil || e.Stats == nil {
		return sandbox.Stats{}, err
	}
	st := e.Stats
	st.MemoryLimitBytes = uint64(s.bounds.now().asked) // not what den adds
	s.processorUse(st)
	return *st, nil
}

// processorUse fills in what is known outside: the sentry's own count says only how it is divided.
func (s *running) processorUse(st *sandbox.Stats) {
	total := s.meter.read()
	if total == 0 { // no /proc to look at
		return
	}
	user := total
	if st.CPUTotal > 0 {
		user = time.Duration(float64(total) * float64(st.CPUUser) / float64(st.CPUTotal))
	}
	st.CPUTotal, st.CPUUser, st.CPUSystem = total, user, total-user
	t := &s.limit
	t.mu.Lock()
	defer t.mu.Unlock()
	st.Periods, st.ThrottledPeriods, st.Throttled = t.periods, t.heldPeriods, t.heldDuration
}

// Processes are those in the sandbox, with its own numbers.
func (s *running) Processes(ctx context.Context) ([]sandbox.Process, error) {
	e, err := s.call(ctx, "processes", &command{Processes: true})
	if err != nil {
		return nil, err
	}
	return e.Processes, nil
}

// Stat describes a file.
func (s *running) Stat(ctx context.Context, name string) (sandbox.FileStat, error) {
	e, err := s.call(ctx, "stat "+name, &command{Stat: orRoot(name)})
	if err != nil || e.Stat == nil {
		return sandbox.FileStat{}, err
	}
	return *e.Stat, nil
}

// orRoot is a name that is not empty.
func orRoot(name string) string {
	if name == "" {
		return "/"
	}
	return name
}

// ReadTar writes a tar of name.
func (s *running) ReadTar(ctx context.Context, name, as string, w io.Writer) error {
	return s.receive(ctx, "read "+name, &command{ReadTar: &readTar{orRoot(name), as}}, w)
}

// ExportChanges writes a layer of what was changed so far.
func (s *running) ExportChanges(ctx context.Context, w io.Writer) error {
	return classed(s.receive(ctx, "export the changes", &command{ExportTo: true}, w))
}

// receive copies what the sentry sends through a pipe.
func (s *running) receive(ctx context.Context, what string, c *command, w io.Writer) error {
	r, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("sandbox %s: %s: %w", s.id, what, err)
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.Close() })()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, r)
		if err != nil {
			r.Close() // or the sentry waits for a reader
		}
		copied <- err
	}()
	_, err = s.call(ctx, what, c, theirs)
	theirs.Close()
	if cerr := <-copied; err == nil || cerr != nil && ctx.Err() == nil {
		err = cerr
	}
	return err
}

// WriteTar unpacks a tar into a directory.
func (s *running) WriteTar(ctx context.Context, name string, r io.Reader, o sandbox.WriteTarOptions) error {
	theirs, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("sandbox %s: write to %s: %w", s.id, name, err)
	}
	defer theirs.Close()
	broken := make(chan error, 1)
	// It ends when the sentry has closed its end or r ends, whose Read cannot be interrupted.
	go func() {
		_, err := io.Copy(w, r)
		if errors.Is(err, unix.EPIPE) {
			err = nil // the sentry has what it wants
		}
		broken <- err
		w.Close()
	}()
	_, err = s.call(ctx, "write to "+name, &command{WriteTar: &writeTar{orRoot(name), o}}, theirs)
	select {
	case rerr := <-broken:
		if rerr != nil {
			return fmt.Errorf("sandbox %s: write to %s: %w", s.id, name, rerr)
		}
	default:
	}
	return err
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
