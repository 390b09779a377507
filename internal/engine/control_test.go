package engine

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestSignalsFromOtherProcessesReachTheProgram(t *testing.T) {
	r := newRig(t, "STOPSIGNAL SIGQUIT")
	r.exec.program = signalled
	for name, c := range map[string]struct {
		do   func(string) error
		want unix.Signal
	}{
		"kill":                          {func(n string) error { return r.Signal(n, unix.SIGUSR1) }, unix.SIGUSR1},
		"TERM is not the stop signal":   {func(n string) error { return r.Signal(n, unix.SIGTERM) }, unix.SIGTERM},
		"stop":                          {func(n string) error { return r.Stop(t.Context(), n, StopOptions{}) }, unix.SIGQUIT},
		"stop with a signal of its own": {func(n string) error { return r.Stop(t.Context(), n, StopOptions{Signal: "HUP"}) }, unix.SIGHUP},
		"forced removal":                {func(n string) error { return r.Remove(t.Context(), n, RemoveOptions{Force: true, Volumes: true}) }, unix.SIGKILL},
	} {
		started, ended := r.background(RunRequest{Name: "c", Remove: name != "forced removal"})
		<-started
		if err := c.do("c"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if exit := <-ended; exit.Code != int(c.want) {
			t.Errorf("%s: the program got %d, want %d", name, exit.Code, c.want)
		}
		if left := r.names(); len(left) > 0 {
			t.Errorf("%s: containers are left: %q", name, left)
		}
	}
}

func TestSignalsAndSizesOfTheCallerReachTheProgram(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		size := <-s.sizes
		return int(<-s.signals)*1000 + int(size.Rows)
	}
	signals, sizes := make(chan unix.Signal, 1), make(chan Size, 1)
	signals <- unix.SIGTERM
	sizes <- Size{Rows: 7, Cols: 9}
	exit, err := r.run(RunRequest{Remove: true, TTY: true}, Streams{Signals: signals, Resizes: sizes})
	if err != nil || exit.Code != int(unix.SIGTERM)*1000+7 {
		t.Errorf("exit is %+v, %v", exit, err)
	}
}

func TestStopKillsWhoDoesNotListen(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		for sig := range s.signals {
			if sig == unix.SIGKILL {
				return 137
			}
		}
		return 0
	}
	zero := 0
	started, ended := r.background(RunRequest{Name: "deaf", StopSeconds: &zero})
	<-started
	if err := r.Stop(t.Context(), "deaf", StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if exit := <-ended; exit.Code != 137 {
		t.Errorf("exit is %+v", exit)
	}
	if code, err := r.waitCode(t.Context(), "deaf"); code != 137 || err != nil {
		t.Errorf("wait gives %d, %v", code, err)
	}
	if err := r.Stop(t.Context(), "deaf", StopOptions{}); !errdefs.IsNotModified(err) {
		t.Errorf("stopping what has stopped: %v", err)
	}
	if err := r.Signal("deaf", unix.SIGTERM); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signalling what has stopped: %v", err)
	}
}

func TestWaiterLearnsTheCodeOfAContainerThatRemovedItself(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	started, ended := r.background(RunRequest{Name: "brief", Remove: true})
	<-started
	code := make(chan int)
	asked := make(chan struct{})
	go func() {
		close(asked)
		got, err := r.waitCode(t.Context(), "brief")
		if err != nil {
			t.Error(err)
		}
		code <- got
	}()
	<-asked
	// The waiter may be late, and then there is nothing to wait for any more; so
	// the container ends only when its exit code is open twice.
	for open := 0; open == 0; {
		open = r.openExitFiles()
	}
	if err := r.Signal("brief", 9); err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != 9 {
		t.Errorf("the waiter got %d", got)
	}
	<-ended
}

// openExitFiles counts this process's descriptors of exit codes.
func (r *rig) openExitFiles() (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && filepath.Base(to) == exitFile {
			n++
		}
	}
	return n
}
