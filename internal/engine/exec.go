package engine

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// An ExecConfig says what to run in a running container.
type ExecConfig struct {
	Args []string
	// Env entries win over the container's.
	Env []string
	// User and WorkingDir are the container's if empty.
	User, WorkingDir string
	TTY, Privileged  bool
	// AttachStdin, AttachStdout, AttachStderr and DetachKeys are kept for who inspects.
	AttachStdin, AttachStdout, AttachStderr bool
	DetachKeys                              string
	Console                                 Size
}

// ExecStreams connect a program that StartExec starts.
type ExecStreams struct {
	// Stdin may be nil: empty. With a terminal Stderr is not used.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Console, if not zero, is the terminal's size.
	Console Size
	// Detach returns as soon as the program runs.
	Detach bool
}

// An Exec is a program that was started, or is to be, in a running container.
type Exec struct {
	ID, ContainerID string
	Config          ExecConfig
	Running         bool
	// ExitCode is nil until the program has ended.
	ExitCode *int
	Pid      int
}

// endedExecs is how many ended programs of all containers are remembered.
const endedExecs = 1024

// execs are the programs of this process's containers.
type execs struct {
	mu    sync.Mutex
	all   map[string]*execution
	ended []string // oldest first
}

type execution struct {
	Exec
	run     *run
	started bool
	sb      sandbox.Sandbox
	// console is the size that was asked for before the program ran.
	console Size
}

// CreateExec registers a program and returns its id.
func (e *Engine) CreateExec(ctx context.Context, nameOrID string, c ExecConfig) (string, error) {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return "", err
	}
	r, err := l.running()
	if err != nil {
		return "", err
	}
	if l.snapshot().State == statePaused {
		return "", conflict("container %s is paused, unpause the container before exec", nameOrID)
	}
	if len(c.Args) == 0 {
		return "", invalid("No exec command specified")
	}
	if _, ok := r.sb.(sandbox.Execer); !ok {
		return "", unsupported("exec in %s: on this rung no program can be started in a running container", nameOrID)
	}
	id, err := newID()
	if err != nil {
		return "", err
	}
	x := &execution{Exec: Exec{ID: id, ContainerID: l.id, Config: c}, run: r}
	e.execs.add(x)
	e.execEvent(x, "exec_create: "+actionOf(c.Args), nil)
	return id, nil
}

// actionOf is a command in the name of an event: docker's has a space after the program also where no arguments follow.
func actionOf(command []string) string { return command[0] + " " + strings.Join(command[1:], " ") }

func (e *Engine) execEvent(x *execution, action string, more map[string]string) {
	attrs := map[string]string{"execID": x.ID}
	for k, v := range more {
		attrs[k] = v
	}
	r := x.run.life.snapshot()
	e.containerEvent(&r, action, attrs)
}

func (s *execs) add(x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]*execution{}
	}
	s.all[x.ID] = x
	s.done(x.ID) // one that is never started is forgotten, too
}

// done lets go of the oldest of too many programs that do not run. The caller holds mu.
func (s *execs) done(id string) {
	s.ended = append(slices.DeleteFunc(s.ended, func(old string) bool { return old == id }), id)
	for len(s.ended) > endedExecs {
		if x := s.all[s.ended[0]]; x != nil && !x.Running {
			delete(s.all, x.ID)
		}
		s.ended = s.ended[1:]
	}
}

// forget lets go of a container's programs.
func (s *execs) forget(container string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.all {
		if x.ContainerID == container {
			delete(s.all, id)
		}
	}
}

func (s *execs) find(id string) (*execution, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.all[id]
	if x == nil {
		return nil, notFound("No such exec instance: %.80s", id)
	}
	return x, nil
}

// of are the programs of a container that run.
func (s *execs) of(container string) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.all {
		if x.ContainerID == container && (x.Running || !x.started) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// StartExec runs the program to its end, which InspectExec tells. A program that cannot be
// executed is a *sandbox.ExecError. When ctx ends the program goes on, without streams.
func (e *Engine) StartExec(ctx context.Context, id string, s ExecStreams) error {
	x, err := e.execs.find(id)
	if err != nil {
		return err
	}
	e.execs.mu.Lock()
	again := x.started
	x.started = true
	e.execs.mu.Unlock()
	if again {
		return conflict("Error: Exec command %s has already run", id)
	}
	if isClosed(x.run.ended) {
		return conflict("container %s is not running", x.ContainerID)
	}
	sb, err := e.launchExec(x, s)
	if err != nil {
		return err
	}
	wait := func() error {
		exit, err := sb.Wait(context.Background()) // it ends with the program, or the container
		e.endExec(x, exit, err)
		return err
	}
	if s.Detach {
		e.residents.wg.Go(func() { x.run.life.complain(wait()) })
		return nil
	}
	done := make(chan error, 1)
	e.residents.wg.Go(func() { done <- wait() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// launchExec starts the program.
func (e *Engine) launchExec(x *execution, s ExecStreams) (sandbox.Sandbox, error) {
	process, err := x.run.process(&x.Config)
	var sb sandbox.Sandbox
	if err == nil {
		if s.Console != (Size{}) {
			process.ConsoleSize = &specs.Box{Height: uint(s.Console.Rows), Width: uint(s.Console.Cols)}
		}
		sb, err = x.run.sb.(sandbox.Execer).Exec(context.Background(), &sandbox.ExecRequest{
			ID: x.ID, Process: process, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Privileged: x.Config.Privileged,
		})
	}
	if err != nil {
		code := 126
		var exec *sandbox.ExecError
		if errors.As(err, &exec) {
			code = exec.Code
		}
		e.endExec(x, sandbox.Exit{Code: code}, nil)
		return nil, err
	}
	e.execs.mu.Lock()
	x.sb, x.Running, x.Pid = sb, true, sb.Pid()
	console := x.console
	e.execs.mu.Unlock()
	if console != (Size{}) {
		_ = sb.Resize(console.Rows, console.Cols) // a courtesy
	}
	e.execEvent(x, "exec_start: "+actionOf(x.Config.Args), nil)
	return sb, nil
}

func (e *Engine) endExec(x *execution, exit sandbox.Exit, err error) {
	code := exit.Code
	if err != nil && code == 0 {
		code = 137
	}
	e.execs.mu.Lock()
	x.Running, x.ExitCode = false, &code
	e.execs.done(x.ID)
	e.execs.mu.Unlock()
	e.execEvent(x, "exec_die", map[string]string{"exitCode": strconv.Itoa(code)})
}

// process is what a program of c is given.
func (r *run) process(c *ExecConfig) (*specs.Process, error) {
	own := r.c
	who, err := own.lookupUser(first(c.User, own.request.User, own.config.Config.User))
	if err != nil {
		return nil, err
	}
	cwd := first(c.WorkingDir, own.request.WorkingDir, own.config.Config.WorkingDir, "/")
	if !path.IsAbs(cwd) {
		return nil, invalid("the working directory %q is invalid, it needs to be an absolute path", cwd)
	}
	spec, err := own.baseSpec(c.Args, who, cwd, c.Privileged || own.more.Privileged)
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Terminal, p.Env = c.TTY, own.execEnvironment(who.Home, c)
	if c.Console != (Size{}) {
		p.ConsoleSize = &specs.Box{Height: uint(c.Console.Rows), Width: uint(c.Console.Cols)}
	}
	return p, nil
}

// ResizeExec tells the program's terminal its size, now or when it runs.
func (e *Engine) ResizeExec(_ context.Context, id string, size Size) error {
	x, err := e.execs.find(id)
	if err != nil {
		return err
	}
	e.execs.mu.Lock()
	sb, running := x.sb, x.Running
	x.console = size
	e.execs.mu.Unlock()
	if sb == nil {
		return nil
	}
	if !running {
		return conflict("exec %s is not running", id)
	}
	return sb.Resize(size.Rows, size.Cols)
}

// InspectExec describes a program.
func (e *Engine) InspectExec(_ context.Context, id string) (*Exec, error) {
	x, err := e.execs.find(id)
	if err != nil {
		return nil, err
	}
	e.execs.mu.Lock()
	defer e.execs.mu.Unlock()
	out := x.Exec
	return &out, nil
}

// killExec ends a program.
func (e *Engine) killExec(id string) {
	x, err := e.execs.find(id)
	if err != nil {
		return
	}
	e.execs.mu.Lock()
	sb := x.sb
	e.execs.mu.Unlock()
	if sb != nil {
		_ = sb.Signal(unix.SIGKILL) // it may have ended
	}
}

func isNotModified(err error) bool { return errdefs.IsNotModified(err) }
