package dockerapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"

	"den/internal/engine"
)

// attach connects the client to the container's streams until the container ends,
// the client is gone, or it has typed its detach keys.
func (s *Server) attach(w http.ResponseWriter, c *call) error {
	o := engine.AttachOptions{
		Stdin: c.flag("stdin"), Stdout: c.flag("stdout"), Stderr: c.flag("stderr"),
		Logs: c.flag("logs"), Stream: c.flag("stream"),
	}
	keys, err := c.detachKeys()
	if err != nil {
		return err
	}
	ctx := context.WithoutCancel(c.Context()) // HTTP's part of the connection ends before
	a, err := s.Engine.Attach(ctx, c.name, o)
	if err != nil {
		return err
	}
	h, err := c.hijack(w, !a.TTY())
	if err != nil {
		return errors.Join(err, a.Close())
	}
	if a.TTY() {
		h.keys, h.detached = keys, func() { s.Engine.Detached(c.name, "") }
	}
	stdout, stderr := h.streams(a.TTY(), o.Stdout, o.Stderr)
	return h.carry(ctx, stdinOf(a, o), func(ctx context.Context) error {
		return errors.Join(a.Copy(ctx, stdout, stderr), a.Close())
	})
}

// detachKeys are those of the query.
func (c *call) detachKeys() ([]byte, error) {
	text := c.query.Get("detachKeys")
	keys, ok := parseDetachKeys(text)
	if !ok {
		return nil, invalid("Invalid detach keys (%.200s) provided", text)
	}
	return keys, nil
}

func stdinOf(a Attachment, o engine.AttachOptions) io.WriteCloser {
	if !o.Stdin || !o.Stream {
		return nil
	}
	return a.Stdin()
}

// streams are the writers of a container's output on the connection: raw with a
// terminal, else in frames; nil for what is not wanted.
func (h *hijacked) streams(tty, out, err bool) (stdout, stderr io.Writer) {
	if tty {
		return h, nil
	}
	if out {
		stdout = frames(h, stdcopy.Stdout)
	}
	if err {
		stderr = frames(h, stdcopy.Stderr)
	}
	return stdout, stderr
}

// carry runs output until it returns, and input beside it. A client that is gone or has detached
// ends ctx, and nothing more is sent to it. After output nobody may wait in stdin's Write. The
// connection is closed when carry returns.
func (h *hijacked) carry(ctx context.Context, stdin io.WriteCloser, output func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beside sync.WaitGroup
	var detached bool
	beside.Go(func() {
		detached = h.input(stdin)
		switch {
		case detached:
			h.detached()
			cancel()
			h.finish()
			_, _ = io.Copy(io.Discard, h) // until it has read the end
			_ = h.Close()
		case h.left():
			cancel()
			_ = h.Close()
		}
	})
	beside.Go(func() {
		if h.gone(ctx) {
			cancel()
			_ = h.Close() // nobody sees the error
		}
	})
	err := output(ctx)
	cancel()
	h.finish()
	beside.Wait()
	if detached {
		return nil
	}
	return errors.Join(err, h.Close())
}

// logs sends what the container has written, and goes on with follow.
func (s *Server) logs(w http.ResponseWriter, c *call) error {
	o, err := c.logOptions()
	if err != nil {
		return err
	}
	l, err := s.Engine.Logs(c.Context(), c.name, o)
	if err != nil {
		return err
	}
	defer l.Close()
	media := types.MediaTypeRawStream
	if !l.TTY() && c.version >= 42 {
		media = types.MediaTypeMultiplexedStream
	}
	out, err := c.flushed(w, media)
	if err != nil {
		return err
	}
	lines := newBatch(out)
	stdout, stderr := io.Writer(lines), io.Writer(nil)
	if !l.TTY() {
		stdout, stderr = frames(lines, stdcopy.Stdout), frames(lines, stdcopy.Stderr)
	}
	err = errors.Join(l.Copy(c.Context(), stdout, stderr), lines.Close())
	if c.Context().Err() != nil {
		return nil // the client has seen enough
	}
	return err
}

func (c *call) logOptions() (engine.LogOptions, error) {
	o := engine.LogOptions{
		Follow: c.flag("follow"), Timestamps: c.flag("timestamps"),
		Stdout: c.flag("stdout"), Stderr: c.flag("stderr"), Tail: -1,
	}
	if !o.Stdout && !o.Stderr {
		return o, invalid("Bad parameters: you must choose at least one stream")
	}
	var err error
	if o.Since, err = timestamp(c.query.Get("since"), time.Now()); err != nil {
		return o, invalid("invalid value for \"since\": %v", err)
	}
	if o.Until, err = timestamp(c.query.Get("until"), time.Now()); err != nil {
		return o, invalid("invalid value for \"until\": %v", err)
	}
	if tail := c.query.Get("tail"); tail != "" && tail != "all" {
		// Docker shows all when it cannot read the number.
		if n, err := c.number("tail", -1); err == nil {
			o.Tail = n
		}
	}
	return o, nil
}
