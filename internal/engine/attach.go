package engine

import (
	"context"
	"io"

	"github.com/containerd/errdefs"
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
	tty   bool
	stdin io.WriteCloser
}

// TTY says that the container has a terminal: all its output is Stdout.
func (a *Attachment) TTY() bool { return a.tty }

// Stdin takes the container's standard input; nil unless it was asked for and the
// container has one. Closing it is the client's half-close.
func (a *Attachment) Stdin() io.WriteCloser { return a.stdin }

// Copy copies the output until the container ends. Each Write is of one stream; nil
// writers drop theirs. A slow writer holds up nobody else.
func (a *Attachment) Copy(_ context.Context, _, _ io.Writer) error { return errdefs.ErrNotImplemented }

// Close ends the connection.
func (a *Attachment) Close() error { return nil }

// Attach connects a client to a container, running or not.
func (e *Engine) Attach(_ context.Context, _ string, _ AttachOptions) (*Attachment, error) {
	return nil, errdefs.ErrNotImplemented
}
