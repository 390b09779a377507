package main

import (
	"context"
	"errors"
	"fmt"
	stdio "io"
	"os"

	"golang.org/x/term"

	"den/internal/daemon"
	"den/internal/engine"
	"den/internal/progress/display"
	"den/internal/sandbox"
)

// A runCall is one den run as it was typed.
type runCall struct {
	*globals
	options *runOptions
	streams streams
	image   string
	args    []string
	// set says whether a flag was given.
	set func(flag string) bool
}

// runErrorCode is for an error of den's own, before or beside the program: exit code 125.
const runErrorCode = 125

func runRun(ctx context.Context, call runCall) error {
	err := withDen(ctx, call.globals, call.streams, func(d *daemon.Den) error {
		if os.Getenv(detachedEnv) != "" {
			return call.supervise(ctx, d)
		}
		// Read in here, because a plain user's den starts twice, and a file of
		// variables may be a pipe.
		req, err := call.request()
		if err != nil {
			return err
		}
		if call.options.detach {
			return call.detach(ctx, req)
		}
		if req.TTY {
			if err := checkTerminal(call.streams.in, req.OpenStdin); err != nil {
				return err
			}
		}
		return call.follow(ctx, d, req, func(string) {})
	})
	return call.fail(ctx, err)
}

// fail says what went wrong and makes docker's exit code of it.
func (call runCall) fail(ctx context.Context, err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) || ctx.Err() != nil {
		return err
	}
	report(call.streams.err, err)
	return &exitError{exitCode(err)}
}

// exitCode is docker's for an error that is not the program's own.
func exitCode(err error) int {
	var exec *sandbox.ExecError
	if errors.As(err, &exec) {
		return exec.Code
	}
	return runErrorCode
}

// follow runs the container with the call's streams, to its end.
func (call runCall) follow(ctx context.Context, d *daemon.Den, req engine.RunRequest, started func(id string)) error {
	eng, err := d.Engine(ctx)
	if err != nil {
		return err
	}
	pulling := display.NewTransfer(call.streams.err, call.options.quiet)
	defer pulling.Close()
	s := engine.Streams{
		Stdin: call.streams.in, Stdout: call.output(call.streams.out.File, "stdout"), Stderr: call.output(call.streams.err, "stderr"),
		Sink: pulling,
		// The terminal may be raw by then.
		Warn: func(text string) { fmt.Fprintf(call.streams.err, "WARNING: %s%s", text, call.lineEnd()) },
	}
	if call.options.sigProxy {
		signals, stop := forwardedSignals()
		defer stop()
		s.Signals = signals
	}
	s.Started = started
	s.Starting = func() { pulling.Close() }
	if req.TTY && !req.Log {
		t := watchTerminal(call.streams)
		defer t.close()
		s.Resizes, req.Console = t.sizes, t.size()
		s.Starting = func() {
			pulling.Close()
			if req.OpenStdin {
				// What cannot be made raw is a terminal that echoes twice.
				_ = t.raw()
			}
		}
	}
	exit, err := eng.Run(ctx, req, s)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return &exitError{exit.Code}
	}
	return nil
}

func (call runCall) lineEnd() string {
	if call.options.tty && call.options.interactive {
		return "\r\n"
	}
	return "\n"
}

// output is where the program's stdout or stderr goes. A file is handed to the
// program as it is; den's terminal is not, because who has a terminal can read
// from it and control it.
func (call runCall) output(f *os.File, name string) stdio.Writer {
	switch {
	case !call.options.attached(name):
		return nil
	case term.IsTerminal(int(f.Fd())):
		return struct{ stdio.Writer }{f}
	}
	return f
}

// attached says whether a stream of the program's is den's.
func (o *runOptions) attached(name string) bool {
	if len(o.attach) == 0 {
		return true
	}
	for _, a := range o.attach {
		if a == name {
			return true
		}
	}
	return false
}
