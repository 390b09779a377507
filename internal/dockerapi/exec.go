package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"den/internal/engine"
)

func (s *Server) createExec(w http.ResponseWriter, c *call) error {
	var body struct {
		container.ExecCreateRequest
		Cmd words
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	if len(body.Cmd) == 0 {
		return invalid("no exec command specified")
	}
	if _, ok := parseDetachKeys(body.DetachKeys); !ok {
		return invalid("Invalid escape keys (%.200s) provided", body.DetachKeys)
	}
	config := engine.ExecConfig{
		Args: body.Cmd, Env: body.Env, User: body.User, WorkingDir: body.WorkingDir,
		TTY: body.Tty, Privileged: body.Privileged,
		AttachStdin: body.AttachStdin, AttachStdout: body.AttachStdout, AttachStderr: body.AttachStderr,
		DetachKeys: body.DetachKeys,
	}
	if c.version >= 42 {
		config.Console = console(body.ConsoleSize)
	}
	id, err := s.Engine.CreateExec(c.Context(), c.name, config)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// console is a size as clients send it, height first; nil and [0,0] are none.
func console(size *[2]uint) engine.Size {
	if size == nil || size[0] > 1<<16-1 || size[1] > 1<<16-1 {
		return engine.Size{}
	}
	return engine.Size{Rows: uint16(size[0]), Cols: uint16(size[1])}
}

func (s *Server) startExec(w http.ResponseWriter, c *call) error {
	var body container.ExecStartRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	e, err := s.Engine.InspectExec(c.Context(), c.name)
	if err != nil {
		return err
	}
	switch {
	case e.ExitCode != nil:
		return conflict("exec command %s has already run", c.name)
	case e.Running:
		return conflict("exec command %s is already running", c.name)
	}
	var size engine.Size
	if c.version >= 42 {
		if size = console(body.ConsoleSize); body.ConsoleSize != nil && !body.Tty && size != (engine.Size{}) {
			return invalid("console size is only supported when TTY is enabled")
		}
	}
	ctx := context.WithoutCancel(c.Context())
	if body.Detach {
		return s.Engine.StartExec(ctx, e.ID, engine.ExecStreams{Detach: true, Console: size})
	}
	return s.attachExec(ctx, w, c, e, size)
}

// attachExec runs the program with the client's connection as its streams.
func (s *Server) attachExec(ctx context.Context, w http.ResponseWriter, c *call, e *engine.Exec, size engine.Size) error {
	h, err := c.hijack(w, !e.Config.TTY)
	if err != nil {
		return err
	}
	if e.Config.TTY {
		h.keys, _ = parseDetachKeys(e.Config.DetachKeys) // they were checked when it was created
		h.detached = func() { s.Engine.Detached(e.ContainerID, e.ID) }
	}
	streams := engine.ExecStreams{Console: size}
	streams.Stdout, streams.Stderr = h.streams(e.Config.TTY, e.Config.AttachStdout, e.Config.AttachStderr)
	var stdin io.WriteCloser
	var r *io.PipeReader
	if e.Config.AttachStdin {
		r, stdin = io.Pipe()
		streams.Stdin = r
	}
	return h.carry(ctx, stdin, func(context.Context) error {
		// A client that goes away leaves the program running, as in docker.
		err := s.Engine.StartExec(ctx, e.ID, streams)
		if r != nil {
			_ = r.Close() // it returns no error
		}
		if err == nil {
			return nil
		}
		out, _ := h.streams(e.Config.TTY, true, false)
		_, werr := fmt.Fprintf(out, "%v\r\n", err)
		return errors.Join(err, werr)
	})
}

func (s *Server) resizeExec(_ http.ResponseWriter, c *call) error {
	rows, cols, err := c.size()
	if err != nil {
		return err
	}
	return s.Engine.ResizeExec(c.Context(), c.name, engine.Size{Rows: rows, Cols: cols})
}

func (s *Server) inspectExec(w http.ResponseWriter, c *call) error {
	e, err := s.Engine.InspectExec(c.Context(), c.name)
	if err != nil {
		return err
	}
	out := container.ExecInspectResponse{
		ID: e.ID, Running: e.Running, ExitCode: e.ExitCode, ContainerID: e.ContainerID, Pid: e.Pid,
		OpenStdin: e.Config.AttachStdin, OpenStdout: e.Config.AttachStdout, OpenStderr: e.Config.AttachStderr,
		DetachKeys: []byte(e.Config.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{
			Tty: e.Config.TTY, Privileged: &e.Config.Privileged, User: e.Config.User, Arguments: []string{},
		},
	}
	if len(e.Config.Args) > 0 {
		out.ProcessConfig.Entrypoint = e.Config.Args[0]
		out.ProcessConfig.Arguments = append(out.ProcessConfig.Arguments, e.Config.Args[1:]...)
	}
	return writeJSON(w, http.StatusOK, out)
}
