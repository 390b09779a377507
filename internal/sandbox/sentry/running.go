package sentry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/sandbox"
)

// running is a started sandbox.
type running struct {
	id      string
	root    oci.Mount
	streams *sandbox.Streams
	master  *os.File // den's end of the terminal
	sentry  *house
	control *os.File // to the sentry
	joins   bool     // a sentry that was there before
	gofer   *child
	upper   *os.File // where the sentry keeps what the payload changes
	layer   *os.File // which it sends here
	bounds  outer
	meter   *meter
	limit   throttle // of processors
	warn    func(string)
	wrote   func(layer.Applied)
	stop    func() bool

	limiting  sync.Mutex // orders SetLimits
	cancelled atomic.Bool
	mu        sync.Mutex // orders what is sent
	ended     bool

	// Set before done is closed.
	exit sandbox.Exit
	err  error
	done chan struct{}
}

// piped makes a regular file something that den writes to. A sentry writes to
// one at offsets of its own: over what was there, and over what the other
// stream says.
func piped(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok || f == nil {
		return w
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return w
	}
	return struct{ io.Writer }{f}
}

// start brings the payload to life.
func (e *Executor) start(ctx context.Context, r *sandbox.Request, s *running) (err error) {
	copied := *r
	copied.Stdout, copied.Stderr = piped(r.Stdout), piped(r.Stderr)
	if s.streams, err = sandbox.NewStreams(&copied); err != nil {
		return err
	}
	b, err := build(r, &e.filters, s.streams)
	if err != nil {
		return err
	}
	defer b.close()
	s.upper, b.upper = b.upper, nil
	with, err := joined(r)
	if err != nil {
		return err
	}
	if s.joins = with != nil; s.joins {
		b.limitless()
		b.out.Share = sharing{IPC: r.IPCOf != nil, PIDs: r.PIDsOf != nil}
	}
	if err := s.prepare(b); err != nil {
		return err
	}
	s.limit.set(b.quota, b.period)
	bounds := outerBounds(e.o.Platform)
	bounds.apply(&b.out)
	s.bounds.b, s.warn, s.wrote = bounds, r.Warn, r.Wrote
	if err := e.engage(ctx, b, s, with); err != nil {
		return err
	}
	b.close()
	s.streams.CloseChild()
	if s.gofer != nil {
		if err := s.goferReady(r); err != nil {
			return err
		}
	}
	ev, err := s.next()
	if err == nil && ev.Ready {
		ev, err = s.next()
	}
	if !s.joins {
		e.pool.refill(r.Network)
	}
	switch {
	case err != nil:
		return s.trouble(ctx, err)
	case ev.Failed != nil:
		return ev.Failed.rebuild(r.Spec.Process.Args[0])
	case !ev.Started:
		return errors.New("the sentry did not say that the payload runs")
	}
	if !s.joins {
		s.sentry.gather(b.processors)
	}
	return b.keep(s.sentry.child)
}

// engage sends the request to a sentry and its shares to a gofer.
func (e *Executor) engage(ctx context.Context, b *builder, s, with *running) error {
	if s.joins {
		if err := s.board(b, with); err != nil {
			return s.trouble(ctx, err)
		}
		s.stop = context.AfterFunc(ctx, s.cancel)
		return nil
	}
	c, warm, err := e.pool.take(b.r.Network)
	if err != nil {
		return err
	}
	if len(b.shares) > 0 { // both start at the same time
		if s.gofer, err = startGofer(b.shares, b.socks); err != nil {
			c.end()
			return err
		}
	}
	err = send(c.control, &command{Start: &b.out}, b.files)
	if err != nil && warm { // it died while it waited
		c.end()
		if c, err = e.pool.spawn(b.r.Network); err != nil {
			return err
		}
		err = send(c.control, &command{Start: &b.out}, b.files)
	}
	s.sentry, s.control = newHouse(c), c.control
	if err == nil {
		err = b.keep(c)
	}
	s.stop = context.AfterFunc(ctx, s.cancel)
	if err != nil {
		return s.trouble(ctx, err)
	}
	return nil
}

// prepare adds what comes back from the sandbox: the terminal and the changes.
func (s *running) prepare(b *builder) error {
	if p := b.r.Spec.Process; p.Terminal {
		ours, theirs, err := socketPair()
		if err != nil {
			return err
		}
		s.master = ours
		b.out.TerminalFD = b.addOwn(theirs)
		s.streams.Terminal(ours, b.r)
	}
	f, err := initPlan().File("den-init") // also for terminals that come later
	if err != nil {
		return err
	}
	b.out.InitFD = b.addOwn(f)
	b.out.ExportFD = -1
	if b.out.Root.UpperFD >= 0 {
		r, w, err := widePipe()
		if err != nil {
			return err
		}
		s.layer = r
		b.out.ExportFD = b.addOwn(w)
	}
	return nil
}

// startGofer starts a gofer for the shares of a sandbox.
func startGofer(shares []share, socks []*os.File) (*child, error) {
	c, err := spawn(goferName)
	if err != nil {
		return nil, err
	}
	if err := send(c.control, &command{Share: &goferCommand{shares}}, socks); err != nil {
		c.end()
		return nil, fmt.Errorf("%s: %w", goferName, err)
	}
	return c, nil
}

// goferReady waits for the gofer, and passes its warnings on.
func (s *running) goferReady(r *sandbox.Request) error {
	var ev event
	if err := decode(s.gofer.control, &ev); err != nil {
		s.gofer.kill()
		if ws, werr := s.gofer.wait(); werr == nil {
			err = s.gofer.died(ws)
		}
		return fmt.Errorf("%s: %w", goferName, err)
	}
	if ev.Failed != nil {
		return ev.Failed.rebuild("")
	}
	for _, w := range ev.Warnings {
		if r.Warn != nil {
			r.Warn(w)
		}
	}
	return nil
}

// next waits for what the sentry says.
func (s *running) next() (*event, error) {
	var e event
	return &e, decode(s.control, &e)
}

// trouble is the error of a start on which the sentry died; it knows why best.
func (s *running) trouble(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.joins {
		return s.lost(err)
	}
	s.sentry.kill()
	// Unless it was only killed now, it says what happened.
	if ws, werr := s.sentry.wait(); werr == nil && !(ws.Signaled() && ws.Signal() == unix.SIGKILL && s.sentry.lastWords() == "") {
		err = fmt.Errorf("the sentry ended: %w", s.sentry.died(ws))
	}
	return err
}

// cancel ends everything without a word.
func (s *running) cancel() {
	s.cancelled.Store(true)
	s.sentry.cancel(s.control)
}

// run copies the streams and waits for the end, in a goroutine that Wait joins.
func (s *running) run() {
	s.streams.Start()
	s.meter = &meter{root: s.sentry.pid}
	go s.limit.run(s, runtime.NumCPU())
	go func() {
		defer close(s.done)
		s.exit, s.err = s.follow()
		s.release()
		s.err = errors.Join(s.err, s.streams.Wait())
		if s.master != nil {
			s.master.Close()
		}
	}()
}

// follow goes with the payload to its end and takes its changes.
func (s *running) follow() (sandbox.Exit, error) {
	ev, err := s.next()
	bounds := s.bounds.now()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	if err != nil || ev.Exit == nil {
		killed := sandbox.Exit{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL}
		if s.cancelled.Load() {
			return killed, nil
		}
		s.sentry.kill()
		ws, werr := s.sentry.wait()
		if werr == nil && ws.Exited() && ws.ExitStatus() == exitGreedy {
			killed.OOMKilled = true
			return killed, fmt.Errorf("sandbox %s: %s", s.id, bounds.tooGreedy())
		}
		if werr == nil {
			werr = s.sentry.died(ws)
		}
		return killed, fmt.Errorf("sandbox %s: the sentry ended: %w%s", s.id, werr, bounds.advise(ws, s.sentry.lastWords()))
	}
	exit := ev.Exit.decode()
	if why := bounds.explain(ev.Exit.Killed); why != "" && s.warn != nil {
		s.warn(why)
	}
	if s.layer == nil || s.cancelled.Load() {
		return exit, nil
	}
	if err := s.takeChanges(); err != nil && !s.cancelled.Load() {
		return exit, fmt.Errorf("sandbox %s: changes: %w", s.id, err)
	}
	return exit, nil
}

// release ends the processes and with them the leases.
func (s *running) release() {
	if s.stop != nil {
		s.stop()
	}
	if s.layer != nil {
		s.layer.Close() // or the sentry waits for a reader
	}
	if s.sentry != nil {
		s.sentry.leave(s.control, s.dropUpper)
	} else {
		s.dropUpper()
	}
	if s.gofer != nil {
		s.gofer.end()
	}
}

// abandon undoes a start that failed.
func (s *running) abandon() {
	s.release()
	if s.streams != nil {
		s.streams.CloseChild()
		s.streams.CloseOwn()
	}
	if s.master != nil {
		s.master.Close()
	}
	close(s.done)
}

// Pid is the sentry's process: the payload's own are not den's to see.
func (s *running) Pid() int { return s.sentry.pid }

// tell sends a command to a sentry whose payload lives.
func (s *running) tell(what string, c *command) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := os.ErrProcessDone
	if !s.ended {
		err = asDone(send(s.control, c, nil))
	}
	if err != nil {
		return fmt.Errorf("sandbox %s: %s: %w", s.id, what, err)
	}
	return nil
}

// Signal sends sig to the payload's first process.
func (s *running) Signal(sig unix.Signal) error {
	return s.tell(fmt.Sprintf("signal %d", sig), &command{Signal: int32(sig)})
}

// Resize sets the size of the terminal.
func (s *running) Resize(rows, cols uint16) error {
	if s.master == nil {
		return fmt.Errorf("sandbox %s: resize: no terminal", s.id)
	}
	return s.tell("resize", &command{Resize: &size{rows, cols}})
}

// Freeze holds the payload's processes. One that has ended needs no holding.
func (s *running) Freeze() { _ = s.tell("freeze", &command{Freeze: true}) }

// Thaw lets them go on.
func (s *running) Thaw() { _ = s.tell("thaw", &command{Thaw: true}) }

// Wait returns how the payload ended, after its changes are written.
func (s *running) Wait(ctx context.Context) (sandbox.Exit, error) {
	return await(ctx, s.done, func() (sandbox.Exit, error) { return s.exit, s.err })
}
