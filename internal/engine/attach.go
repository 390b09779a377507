package engine

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync"

	"den/internal/engine/log"
)

// AttachOptions say which streams of a container are wanted.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	// Logs begins with what was written before; without Stream it is all.
	Logs, Stream bool
}

// An Attachment is a client's connection to a container's streams. It counts from the
// moment that Attach returned, also when the container starts later.
type Attachment struct {
	life *life
	o    AttachOptions
	tty  bool
	// before reads what was written before; nil if it is not wanted.
	before *log.Cursor

	once   sync.Once
	ready  chan struct{} // closed when what follows is set
	run    *run          // nil: it does not start
	cursor *log.Cursor
	err    error
	closed chan struct{}
	shut   sync.Once
}

// Attach connects a client to a container, running or not.
func (e *Engine) Attach(ctx context.Context, nameOrID string, o AttachOptions) (*Attachment, error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.record.State == statePaused {
		return nil, conflict("container %s is paused, unpause the container before attach", l.id)
	}
	if l.record.State == stateRestarting {
		return nil, conflict("container %s is restarting, wait until the container is running", l.id)
	}
	a := &Attachment{life: l, o: o, tty: l.request.TTY, ready: make(chan struct{}), closed: make(chan struct{})}
	if o.Logs {
		if a.before, err = log.Read(l.logPath()); err != nil {
			return nil, err
		}
	}
	switch {
	case !o.Stream:
		a.end()
	case l.run != nil:
		a.begin(l.run)
	default:
		l.waiting = append(l.waiting, a)
		if l.launching != nil {
			a.place(l.launching)
		}
	}
	e.containerEvent(&l.record, "attach", nil)
	return a, nil
}

// Detached tells that a client has typed its detach keys: in a container's streams, or in those
// of the program exec. Who knows neither any more need not know.
func (e *Engine) Detached(nameOrID, exec string) {
	if exec != "" {
		if x, err := e.execs.find(exec); err == nil {
			e.execEvent(x, "exec_detach", nil)
		}
		return
	}
	if id, err := e.find(nameOrID); err == nil {
		if l := e.known(id); l != nil {
			l.tell("detach", nil)
		}
	}
}

// logPath is where the container's output is, kept or not.
func (l *life) logPath() string {
	name, _ := l.request.LogConfig.options()
	return filepath.Join(l.engine.Store.ContainerPath(l.id), name)
}

// place says that the client sees what a run writes from now on. The caller holds the life's mu.
func (a *Attachment) place(r *run) {
	if a.cursor == nil && a.err == nil {
		a.cursor, a.err = r.streams.log.End()
	}
}

// begin connects the client to a run. The caller holds the life's mu.
func (a *Attachment) begin(r *run) {
	a.once.Do(func() {
		a.run = r
		a.place(r)
		close(a.ready)
	})
}

// end says that there will be no run.
func (a *Attachment) end() { a.once.Do(func() { close(a.ready) }) }

// TTY says that the container has a terminal: all its output is Stdout.
func (a *Attachment) TTY() bool { return a.tty }

// Stdin takes the container's standard input; nil unless it was asked for and the
// container has one. Closing it is the client's half-close. A Write waits for the start.
func (a *Attachment) Stdin() io.WriteCloser {
	if !a.o.Stdin || !a.life.request.OpenStdin {
		return nil
	}
	return (*attachedStdin)(a)
}

type attachedStdin Attachment

func (s *attachedStdin) Write(p []byte) (int, error) {
	select {
	case <-s.ready:
	case <-s.closed:
		return 0, io.ErrClosedPipe
	}
	if s.run == nil || s.run.streams.stdin == nil {
		return 0, io.ErrClosedPipe
	}
	return s.run.streams.stdin.Write(p)
}

// Close ends the client's input; before the start it waits for it.
func (s *attachedStdin) Close() error {
	select {
	case <-s.ready:
	case <-s.closed:
		return nil
	}
	if s.run != nil && s.run.streams.stdin != nil {
		s.run.streams.stdin.done()
	}
	return nil
}

// Copy copies the output until the container ends. Each Write is of one stream; nil
// writers drop theirs. A slow writer holds up nobody else.
func (a *Attachment) Copy(ctx context.Context, stdout, stderr io.Writer) error {
	out := outputs{a.o, stdout, stderr}
	if a.before != nil {
		if _, err := out.copy(a.before, false); err != nil {
			return err
		}
	}
	select {
	case <-a.ready:
	case <-a.closed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if a.run == nil || a.err != nil {
		return a.err
	}
	for {
		changed := a.cursor.Changed()
		over := isClosed(a.run.ended)
		ended, err := out.copy(a.cursor, true)
		if err != nil || over {
			return err
		}
		if ended { // and what a start finds then is a container that does not run
			changed = nil
		}
		select {
		case <-changed:
		case <-a.run.ended:
		case <-a.closed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// outputs are a client's writers.
type outputs struct {
	o              AttachOptions
	stdout, stderr io.Writer
}

// copy copies what there is; with untilMark it ends at the end of a run, and says so.
func (o outputs) copy(c *log.Cursor, untilMark bool) (bool, error) {
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		var to io.Writer
		switch chunk.Stream {
		case log.Mark:
			if untilMark {
				return true, nil
			}
		case log.Stdout:
			if o.o.Stdout {
				to = o.stdout
			}
		case log.Stderr:
			if o.o.Stderr {
				to = o.stderr
			}
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(chunk.Data); err != nil {
			return false, err
		}
	}
}

// Close ends the connection, when Copy has returned or is to. A client that attached alone
// ends the container's standard input, if that was for one client.
func (a *Attachment) Close() error {
	a.shut.Do(func() { close(a.closed) })
	a.life.mu.Lock()
	for i, w := range a.life.waiting {
		if w == a {
			a.life.waiting = append(a.life.waiting[:i], a.life.waiting[i+1:]...)
			break
		}
	}
	a.life.mu.Unlock()
	a.end()
	var errs []error
	for _, c := range []*log.Cursor{a.before, a.cursor} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
