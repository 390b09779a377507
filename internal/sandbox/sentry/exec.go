package sentry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// executed is one more program in a sandbox.
type executed struct {
	id      string
	sandbox *running
	line    *line
	streams *sandbox.Streams
	master  *os.File // den's end of the terminal
	stop    func() bool

	mu    sync.Mutex // orders what is sent
	ended bool

	// Set before done is closed.
	exit sandbox.Exit
	err  error
	done chan struct{}
}

// Exec starts one more program.
func (s *running) Exec(ctx context.Context, r *sandbox.ExecRequest) (sandbox.Sandbox, error) {
	q := &sandbox.Request{
		ID: r.ID, Spec: &specs.Spec{Process: r.Process, Linux: &specs.Linux{}},
		Stdin: r.Stdin, Stdout: piped(r.Stdout), Stderr: piped(r.Stderr),
	}
	if err := sandbox.CheckText(q); err != nil {
		return nil, err
	}
	x := &executed{id: r.ID, sandbox: s, done: make(chan struct{})}
	if err := x.start(ctx, q, r.Privileged); err != nil {
		x.abandon()
		var exec *sandbox.ExecError
		if errors.As(err, &exec) || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, err
		}
		return nil, fmt.Errorf("sandbox %s: exec %s: %w", s.id, r.ID, err)
	}
	x.streams.Start()
	go x.follow()
	return x, nil
}

// start brings the program to life.
func (x *executed) start(ctx context.Context, q *sandbox.Request, privileged bool) (err error) {
	if x.streams, err = sandbox.NewStreams(q); err != nil {
		return err
	}
	p, err := programOf(q.Spec.Process)
	if err != nil {
		return err
	}
	c := &command{Exec: &execution{program: p, Unfiltered: privileged}}
	var files []*os.File
	if p.Terminal != nil {
		ours, theirs, err := socketPair()
		if err != nil {
			return err
		}
		defer theirs.Close()
		x.master = ours
		x.streams.Terminal(ours, q)
		files = []*os.File{theirs}
		c.Exec.TerminalFD = 0
	} else {
		files = x.streams.Child[:]
		c.Exec.StdioFD = [3]int{0, 1, 2}
	}
	if x.line, err = x.sandbox.dial(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, x.line.hangUp)()
	e, err := x.line.ask(c, files)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case e.Failed != nil:
		return e.Failed.rebuild(q.Spec.Process.Args[0])
	case !e.Started:
		return errors.New("the sentry did not say that the program runs")
	}
	x.streams.CloseChild()
	// A line that hangs up is the program's end.
	x.stop = context.AfterFunc(ctx, func() { _ = x.Signal(unix.SIGKILL) })
	return nil
}

// abandon undoes a start that failed.
func (x *executed) abandon() {
	if x.streams != nil {
		x.streams.CloseChild()
		x.streams.CloseOwn()
	}
	if x.master != nil {
		x.master.Close()
	}
	if x.line != nil {
		x.line.hangUp()
	}
	close(x.done)
}

// follow goes with the program to its end; Wait joins it.
func (x *executed) follow() {
	defer close(x.done)
	e, err := x.line.next()
	x.mu.Lock()
	x.ended = true
	x.mu.Unlock()
	x.stop()
	switch {
	case err == nil && e.Exit != nil:
		x.exit = e.Exit.decode()
	default: // it ended with the sandbox
		x.exit = sandbox.Exit{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL}
	}
	x.line.hangUp()
	x.err = x.streams.Wait()
	if x.master != nil {
		x.master.Close()
	}
}

// Pid is the sentry's process: the program's own is not den's to see.
func (x *executed) Pid() int { return x.sandbox.Pid() }

// tell sends a command to the program.
func (x *executed) tell(what string, c *command) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	err := os.ErrProcessDone
	if !x.ended {
		err = x.line.send(c, nil)
	}
	if err != nil {
		return fmt.Errorf("sandbox %s: exec %s: %s: %w", x.sandbox.id, x.id, what, err)
	}
	return nil
}

// Signal sends sig to the program.
func (x *executed) Signal(sig unix.Signal) error {
	return x.tell(fmt.Sprintf("signal %d", sig), &command{Signal: int32(sig)})
}

// Resize sets the size of the terminal.
func (x *executed) Resize(rows, cols uint16) error {
	if x.master == nil {
		return fmt.Errorf("sandbox %s: exec %s: resize: no terminal", x.sandbox.id, x.id)
	}
	return x.tell("resize", &command{Resize: &size{rows, cols}})
}

// Wait returns how the program ended.
func (x *executed) Wait(ctx context.Context) (sandbox.Exit, error) {
	return await(ctx, x.done, func() (sandbox.Exit, error) { return x.exit, x.err })
}

// await returns result when done is closed.
func await(ctx context.Context, done <-chan struct{}, result func() (sandbox.Exit, error)) (sandbox.Exit, error) {
	select {
	case <-done:
		return result()
	default:
	}
	select {
	case <-done:
		return result()
	case <-ctx.Done():
		return sandbox.Exit{}, context.Cause(ctx)
	}
}

// A line is a connection with a sentry for one call.
type line struct{ socket *os.File }

// dial opens a line. os.ErrProcessDone says that the sandbox has ended.
func (s *running) dial() (*line, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		ours.Close()
		return nil, os.ErrProcessDone
	}
	if err := asDone(send(s.control, &command{Call: true}, []*os.File{theirs})); err != nil {
		ours.Close()
		return nil, err
	}
	return &line{ours}, nil
}

// asDone is err with os.ErrProcessDone in the place of what a socket says whose other end is gone.
func asDone(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF) {
		return os.ErrProcessDone
	}
	return err
}

func (l *line) send(c *command, files []*os.File) error { return asDone(send(l.socket, c, files)) }

// next waits for what the sentry says.
func (l *line) next() (*event, error) {
	var e event
	return &e, asDone(decode(l.socket, &e))
}

// ask sends a command and waits for what the sentry says first.
func (l *line) ask(c *command, files []*os.File) (*event, error) {
	if err := l.send(c, files); err != nil {
		return nil, err
	}
	return l.next()
}

// hangUp closes the line. It may be called at any time, and again.
func (l *line) hangUp() { l.socket.Close() }

// decode is the exit as sandboxes have it.
func (e *exit) decode() sandbox.Exit {
	ws := unix.WaitStatus(e.Status)
	exit := sandbox.Exit{Code: ws.ExitStatus(), OOMKilled: e.Killed == killMemory}
	if ws.Signaled() {
		exit.Code, exit.Signal = 128+int(ws.Signal()), ws.Signal()
	}
	return exit
}
