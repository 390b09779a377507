package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
)

// run starts the container's process and stays with it to its end.
func (c *container) run(ctx context.Context, s Streams) (exit Exit, err error) {
	if n := c.network(); n != sandbox.NetworkHost && n != sandbox.NetworkNone {
		return Exit{}, fmt.Errorf("network %q: %w: den run has host and none", n, errdefs.ErrInvalidArgument)
	}
	spec, err := c.spec()
	if err != nil {
		return Exit{}, err
	}
	mounts, err := c.mounts()
	if err != nil {
		return Exit{}, err
	}
	var hold []*os.File
	for _, t := range c.trees {
		hold = append(hold, t.Hold()...)
	}
	r := &sandbox.Request{
		ID: c.record.ID, Spec: spec, Root: c.root(), Mounts: mounts, Hold: append(hold, c.dir.Hold()),
		Stdout: s.Stdout, Stderr: s.Stderr, Network: c.network(), Init: c.request.Init, Warn: s.Warn,
	}
	if c.request.OpenStdin {
		r.Stdin = s.Stdin
	}
	if c.request.Log {
		closeLog, err := c.log(r)
		if err != nil {
			return Exit{}, err
		}
		defer func() { err = errors.Join(err, closeLog()) }()
	}
	if err := writeCIDFile(c.request.CIDFile, c.record.ID); err != nil {
		return Exit{}, err
	}
	sb, err := c.engine.Exec.Start(ctx, r)
	if err != nil {
		return Exit{}, err
	}
	if err := c.started(); err != nil {
		return Exit{}, errors.Join(err, kill(ctx, sb))
	}
	if s.Started != nil {
		s.Started(c.record.ID)
	}
	stop, err := c.forward(sb, s)
	if err != nil {
		return Exit{}, errors.Join(err, kill(ctx, sb))
	}
	e, err := sb.Wait(ctx)
	stop()
	exit = Exit{Code: e.Code, OOMKilled: e.OOMKilled}
	return exit, errors.Join(err, c.exited(exit))
}

// root is the driver's mount; ReadOnly is the spec's to enforce.
func (c *container) root() oci.Mount { return c.active.Root }

func kill(ctx context.Context, sb sandbox.Sandbox) error {
	err := sb.Signal(unix.SIGKILL)
	_, werr := sb.Wait(context.WithoutCancel(ctx))
	return errors.Join(err, werr)
}

// log sends the output of r to the container's log; the function closes it.
func (c *container) log(r *sandbox.Request) (func() error, error) {
	l, err := openLog(c.dir.Path())
	if err != nil {
		return nil, err
	}
	stdout, flushOut := l.stream("stdout")
	stderr, flushErr := l.stream("stderr")
	r.Stdout, r.Stderr = stdout, stderr
	return func() error { return errors.Join(flushOut(), flushErr(), l.close()) }, nil
}

// forward passes signals, those of other den processes too, and terminal sizes
// to sb until the returned function is called, which waits for it to end.
func (c *container) forward(sb sandbox.Sandbox, s Streams) (func(), error) {
	// The process may be gone already when a signal arrives, which is no news.
	stopControl, err := c.control(func(sig unix.Signal) { _ = sb.Signal(c.translate(sig)) })
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case sig := <-s.Signals:
				_ = sb.Signal(c.translate(sig))
			case size := <-s.Resizes:
				_ = sb.Resize(size.Rows, size.Cols)
			}
		}
	})
	return func() {
		stopControl()
		close(done)
		wg.Wait()
	}, nil
}

// translate makes den's own SIGTERM the container's stop signal.
func (c *container) translate(sig unix.Signal) unix.Signal {
	if sig != unix.SIGTERM {
		return sig
	}
	if stop, err := ParseSignal(first(c.request.StopSignal, c.config.Config.StopSignal, "SIGTERM")); err == nil {
		return stop
	}
	return sig
}

// ParseSignal reads "SIGTERM", "term" or "15".
func ParseSignal(s string) (unix.Signal, error) {
	var n int
	if _, err := fmt.Sscanf(s, "%d", &n); err == nil && n > 0 && n <= 64 {
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
	return 0, fmt.Errorf("signal %q: %w: want a name such as SIGTERM or a number", s, errdefs.ErrInvalidArgument)
}

// realtime reads SIGRTMIN+n and SIGRTMAX-n as glibc counts them, which is what
// systemd's images mean by SIGRTMIN+3.
func realtime(name string) (base, offset int, ok bool) {
	const minimum, maximum = 34, 64
	if _, err := fmt.Sscanf(name, "SIGRTMIN+%d", &offset); err == nil && offset >= 0 && minimum+offset <= maximum {
		return minimum, offset, true
	}
	if _, err := fmt.Sscanf(name, "SIGRTMAX-%d", &offset); err == nil && offset >= 0 && maximum-offset >= minimum {
		return maximum, -offset, true
	}
	return 0, 0, false
}

// writeCIDFile refuses a file that exists, as docker does.
func writeCIDFile(file, id string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("container ID file: %w", err)
	}
	_, err = f.WriteString(id)
	return errors.Join(err, f.Close())
}
