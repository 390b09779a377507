package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"den/internal/daemon"
	"den/internal/engine"
)

// detachedEnv marks the den that stays behind for a detached container. It reads
// the request from its standard input. Its descriptor 3 takes one line to the den
// that the user called, the container's ID, and is closed without one when there
// is no container.
const (
	detachedEnv = "_DEN_DETACHED"
	detachedFD  = 3
)

// maxReport and maxRequest bound what the two dens send each other.
const (
	maxReport  = 256
	maxRequest = 64 << 20
)

// detach runs the container in a den of its own, in a session of its own, and
// returns when the container runs.
func (call runCall) detach(ctx context.Context, req engine.RunRequest) error {
	data, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// What the user's shell left open is none of the detached den's business:
	// whoever reads such a pipe to its end would wait for the container.
	if err := closeOnExec(); err != nil {
		return errors.Join(err, w.Close())
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), detachedEnv+"=1")
	child.ExtraFiles = []*os.File{w}
	child.Stdin = bytes.NewReader(data)
	child.Stderr = call.streams.err // a pull's progress and errors, until the container runs
	child.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := errors.Join(child.Start(), w.Close()); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	// The child is no longer in the terminal's process group.
	defer context.AfterFunc(ctx, func() { _ = child.Process.Signal(unix.SIGTERM) })()
	id, err := bufio.NewReader(stdio.LimitReader(r, maxReport)).ReadString('\n')
	if err != nil {
		return detachFailed(child)
	}
	fmt.Fprint(call.streams.out, id)
	return child.Process.Release()
}

// detachFailed waits for a detached den that has no container, and ends as it
// did: it has said why.
func detachFailed(child *exec.Cmd) error {
	err := child.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{exit.ExitCode()}
	}
	return fmt.Errorf("the detached den ended without a container: %w", errors.Join(err, stdio.ErrUnexpectedEOF))
}

// closeOnExec keeps every descriptor but the standard ones from programs that
// den starts, unless it hands them over.
func closeOnExec() error {
	err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err == nil || !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	// Linux before 5.11.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// supervise is the den that stays: it reports, lets go of the user's terminal
// and lives as long as the container.
func (call runCall) supervise(ctx context.Context, d *daemon.Den) error {
	if err := os.Unsetenv(detachedEnv); err != nil { // not for credential helpers
		return err
	}
	report, err := reportFile()
	if err != nil {
		return err
	}
	defer report.Close()
	var req engine.RunRequest
	if err := json.NewDecoder(stdio.LimitReader(call.streams.in, maxRequest)).Decode(&req); err != nil {
		return fmt.Errorf("detached: %w", err)
	}
	req.Log, req.OpenStdin = true, false
	started := func(id string) {
		// Whoever called may be gone; the container is there all the same.
		_, _ = fmt.Fprintln(report, id)
		report.Close()
		letGo()
	}
	return call.follow(ctx, d, req, started)
}

// reportFile is the pipe to the den that the user called.
func reportFile() (*os.File, error) {
	unix.CloseOnExec(detachedFD)
	f := os.NewFile(detachedFD, "report")
	if fi, err := f.Stat(); err != nil || fi.Mode()&fs.ModeNamedPipe == 0 {
		return nil, fmt.Errorf("%s is den's own and must not be set", detachedEnv)
	}
	return f, nil
}

// letGo leaves nothing of the user's open behind their back: neither the
// standard streams nor the directory that den was called in.
func letGo() {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	for fd := range 3 {
		_ = unix.Dup3(null, fd, 0)
	}
	_ = unix.Close(null)
	_ = os.Chdir("/")
}
