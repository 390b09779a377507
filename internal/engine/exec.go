package engine

import (
	"context"
	"io"

	"github.com/containerd/errdefs"
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

// CreateExec registers a program and returns its id.
func (e *Engine) CreateExec(_ context.Context, _ string, _ ExecConfig) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// StartExec runs the program to its end, which InspectExec tells. A program that cannot be
// executed is a *sandbox.ExecError.
func (e *Engine) StartExec(_ context.Context, _ string, _ ExecStreams) error {
	return errdefs.ErrNotImplemented
}

// ResizeExec tells the program's terminal its size.
func (e *Engine) ResizeExec(_ context.Context, _ string, _ Size) error {
	return errdefs.ErrNotImplemented
}

// InspectExec describes a program.
func (e *Engine) InspectExec(_ context.Context, _ string) (*Exec, error) {
	return nil, errdefs.ErrNotImplemented
}
