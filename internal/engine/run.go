package engine

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/engine/log"
	"den/internal/failpoint"
	"den/internal/sandbox"
)

// run starts the container's process and stays with it to its end.
func (c *container) run(ctx context.Context, s Streams) (exit Exit, err error) {
	hangup := newHangup(s.Stdout)
	if c.request.TTY {
		s.Stdout = hangup
	}
	r, closeLog, err := c.sandboxRequest(ctx, s)
	if err != nil {
		return Exit{}, errors.Join(err, c.failed(err))
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	control, err := c.listen()
	if err != nil {
		return Exit{}, err
	}
	defer control.Close()
	if err := context.Cause(ctx); err != nil {
		return Exit{}, err
	}
	// From here on the program is the one to end: signals go to it.
	ctx = context.WithoutCancel(ctx)
	watch, err := c.engine.Store.Watch(ctx, c.dir.Path())
	if err != nil {
		return Exit{}, errors.Join(err, c.failed(err))
	}
	defer watch.Stop()
	if s.Starting != nil {
		s.Starting()
	}
	if err := failpoint.Hit("engine.run.start"); err != nil {
		return Exit{}, errors.Join(err, c.failed(err))
	}
	sb, err := c.engine.Exec.Start(watch.Context(), r)
	if err != nil {
		return Exit{}, errors.Join(err, c.failed(err))
	}
	if f, ok := sb.(sandbox.Freezer); ok {
		watch.SetBrake(f)
	}
	err = failpoint.Hit("engine.run.started")
	if err == nil {
		err = c.started()
	}
	if err != nil {
		return Exit{}, errors.Join(err, kill(ctx, sb))
	}
	stop := c.forward(sb, control, s, hangup)
	if s.Started != nil {
		s.Started(c.record.ID)
	}
	e, err := sb.Wait(ctx)
	stop()
	err = errors.Join(err, watch.Stop())
	exit = Exit{Code: e.Code, OOMKilled: e.OOMKilled}
	return exit, errors.Join(err, failpoint.Hit("engine.run.exited"), c.exited(exit))
}

// sandboxRequest says what to run and in what. The function closes the log.
func (c *container) sandboxRequest(ctx context.Context, s Streams) (*sandbox.Request, func() error, error) {
	spec, err := c.spec()
	if err != nil {
		return nil, nil, err
	}
	mounts, err := c.mounts(ctx)
	if err != nil {
		return nil, nil, err
	}
	var hold []*os.File
	for _, t := range c.trees {
		hold = append(hold, t.Hold()...)
	}
	r := &sandbox.Request{
		ID: c.record.ID, Spec: spec, Root: c.active.Root, Mounts: mounts, Hold: append(hold, c.dir.Hold()),
		Stdout: s.Stdout, Stderr: s.Stderr, Network: c.network(), Init: c.request.Init, Warn: s.Warn,
	}
	if c.request.OpenStdin {
		r.Stdin = s.Stdin
	}
	if !c.request.Log {
		return r, func() error { return nil }, nil
	}
	closeLog, err := c.log(r)
	return r, closeLog, err
}

func kill(ctx context.Context, sb sandbox.Sandbox) error {
	err := sb.Signal(unix.SIGKILL)
	_, werr := sb.Wait(ctx)
	return errors.Join(err, werr)
}

// logBytes and logFiles bound the log of a detached den run.
const (
	logBytes = 64 << 20
	logFiles = 2
)

// log sends the output of r to the container's log; the function closes it. A program with
// a terminal writes to one stream.
func (c *container) log(r *sandbox.Request) (func() error, error) {
	s := &streams{}
	var err error
	if s.log, err = log.Open(filepath.Join(c.dir.Path(), logDir), log.Options{MaxBytes: logBytes, MaxFiles: logFiles}); err != nil {
		return nil, err
	}
	if c.request.TTY {
		r.Stdout = s.log.Writer(log.Stdout)
		return s.finish, nil
	}
	for _, o := range []struct {
		stream log.Stream
		to     *io.Writer
	}{{log.Stdout, &r.Stdout}, {log.Stderr, &r.Stderr}} {
		own, child, err := s.pipe("", "", false)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		pump, err := s.log.Pump(o.stream, own)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.pumps = append(s.pumps, pump)
		*o.to = child
	}
	return s.finish, nil
}

// forward passes signals, those of other den processes too, and terminal sizes
// to sb until the returned function is called, which waits for it to end.
func (c *container) forward(sb sandbox.Sandbox, control *os.File, s Streams, h *hangup) func() {
	done := make(chan struct{})
	var wg sync.WaitGroup
	// The process may be gone already when a signal arrives, which is no news.
	wg.Go(func() { c.serve(control, func(sig unix.Signal) { _ = sb.Signal(sig) }) })
	wg.Go(func() { c.hangUp(sb, h.gone, done) })
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case sig := <-s.Signals:
				_ = sb.Signal(sig)
			case size := <-s.Resizes:
				_ = sb.Resize(size.Rows, size.Cols)
			}
		}
	})
	return func() {
		control.Close()
		close(done)
		wg.Wait()
	}
}

// ParseSignal reads "SIGTERM", "term" or "15".
func ParseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	if base, offset, ok := realtime(name); ok {
		return unix.Signal(base + offset), nil
	}
	return 0, invalid("invalid signal: %s; want a name such as SIGTERM or a number", s)
}

// realtime reads SIGRTMIN+n and SIGRTMAX-n as glibc counts them, which is what
// systemd's images mean by SIGRTMIN+3.
func realtime(name string) (base, offset int, ok bool) {
	const minimum, maximum = 34, 64
	for _, end := range []struct {
		name      string
		base, dir int
	}{{"SIGRTMIN", minimum, 1}, {"SIGRTMAX", maximum, -1}} {
		rest, ok := strings.CutPrefix(name, end.name)
		if !ok {
			continue
		}
		offset, err := strconv.Atoi("0" + strings.TrimLeft(rest, "+-"))
		n := end.base + end.dir*offset
		return end.base, end.dir * offset, err == nil && n >= minimum && n <= maximum
	}
	return 0, 0, false
}
