package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/daemon"
	"den/internal/engine"
)

// detachedEnv marks the den that stays behind for a detached container. Its
// descriptor 3 takes one line to the den that the user called: the container's
// ID, or "error " and why there is none.
const (
	detachedEnv = "_DEN_DETACHED"
	detachedFD  = 3
)

// detach runs the container in a den of its own, in a session of its own, and
// returns when the container runs.
func (call runCall) detach(ctx context.Context, d *daemon.Den, req engine.RunRequest) error {
	if os.Getenv(detachedEnv) != "" {
		return call.supervise(ctx, d, req)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), detachedEnv+"=1")
	child.ExtraFiles = []*os.File{w}
	child.Stderr = call.streams.err // a pull's progress; closed by the child when the container runs
	child.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return err
	}
	line, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return err
	}
	id := strings.TrimSuffix(string(line), "\n")
	if text, failed := strings.CutPrefix(id, "error "); failed || id == "" {
		var exit *exec.ExitError
		if err := child.Wait(); errors.As(err, &exit) {
			if text != "" {
				fmt.Fprintln(call.streams.err, "den:", text)
			}
			return &exitError{exit.ExitCode()}
		}
		return errors.New("the detached den ended without a word")
	}
	fmt.Fprintln(call.streams.out, id)
	return child.Process.Release()
}

// supervise is the den that stays: it reports, lets go of the user's terminal
// and lives as long as the container.
func (call runCall) supervise(ctx context.Context, d *daemon.Den, req engine.RunRequest) error {
	report := os.NewFile(detachedFD, "report")
	if report == nil {
		return errors.New("detached: no descriptor to report on")
	}
	defer report.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	reported := false
	inner := call
	inner.streams = streams{in: null, out: null, err: call.streams.err}
	req.Log, req.OpenStdin = true, false
	started := func(id string) {
		reported = true
		fmt.Fprintln(report, id)
		report.Close()
		// Nothing of the user's stays open behind their back.
		for fd := range 3 {
			_ = unix.Dup3(int(null.Fd()), fd, 0)
		}
	}
	err = inner.follow(ctx, d, req, started)
	var exit *exitError
	if err != nil && !errors.As(err, &exit) && !reported {
		fmt.Fprintf(report, "error %v\n", err)
		return &exitError{exitCode(err)}
	}
	return err
}
