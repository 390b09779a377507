package sentry_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// killedEnv makes this test's binary a den that is going to be killed: it holds the lease
// that the variable names.
const killedEnv = "DEN_TEST_KILLED"

// victim runs a sandbox for ever, tells its sentry's process id, and is killed.
func victim(dir string) error {
	e, err := sentry.New(sentry.Options{})
	if err != nil {
		return err
	}
	lease, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lease.Fd()), unix.LOCK_SH); err != nil {
		return err
	}
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"/bin/sh", "-c", "sleep 600 & sleep 600 & echo up; wait"}})
	if err != nil {
		return err
	}
	s, err := e.Start(context.Background(), &sandbox.Request{
		ID: "victim", Spec: spec, Network: sandbox.NetworkNone, Stdout: os.Stdout, Stderr: os.Stderr, Hold: []*os.File{lease},
		Root: oci.Mount{Type: "overlay", Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper")},
	})
	if err != nil {
		return err
	}
	fmt.Println("pid", s.Pid())
	_, err = s.Wait(context.Background())
	return err
}

func TestKilledDenLeavesNoProcessAndNoLease(t *testing.T) {
	own := newExecutor(t, sentry.Options{})
	b := sandboxtest.New(t, own)
	dir := filepath.Dir(b.Lower)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killedEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	pid, up := 0, false
	for (pid == 0 || !up) && lines.Scan() {
		if n, ok := strings.CutPrefix(lines.Text(), "pid "); ok {
			pid, err = strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
		}
		up = up || lines.Text() == "up"
	}
	if pid == 0 || !up {
		t.Fatal("the victim did not start: ", cmd.Wait())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lease, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	if unix.Flock(int(lease.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		t.Fatal("nobody has the lease")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// Both end by themselves, or the test's time limit ends it.
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lease.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}

func TestPayloadThatAttacksItsSandboxEndsIt(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	for name, c := range map[string]struct {
		script string
		init   bool
		signal unix.Signal
	}{
		"kills process 1":        {"sleep 600 & kill -9 1", false, unix.SIGKILL},
		"kills everybody":        {"sleep 600 & kill -9 -1; kill -9 $$", false, unix.SIGKILL},
		"closes everything":      {"sleep 600 & for i in 0 1 2 3 4 5 6 7 8 9; do eval \"exec $i>&-\"; done; kill -9 $$", false, unix.SIGKILL},
		"kills init":             {"kill -9 1; sleep 600", true, unix.SIGKILL},
		"leaves orphans running": {"(sleep 600 &); (sleep 600 &); kill -9 $$", true, unix.SIGKILL},
	} {
		r := b.Request(c.script)
		r.Init = c.init
		if _, exit := b.Run(r); exit.Signal != c.signal {
			t.Errorf("%s: %+v", name, exit)
		}
	}
}

func TestChangesOfACancelledSandboxAreDropped(t *testing.T) {
	e := &imageExecutor{Executor: newExecutor(t, sentry.Options{}), dir: t.TempDir()}
	b := sandboxtest.New(t, e)
	r := b.Request("echo x >/x; echo ready; exec sleep 600")
	if err := e.images(t.Context(), &r.Root); err != nil {
		t.Fatal(err)
	}
	r.Root.Upper = filepath.Join(t.TempDir(), "image")
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.Stdout = w
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := e.Executor.Start(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if exit, err := s.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Errorf("%+v, %v", exit, err)
	}
	left, err := os.ReadDir(filepath.Dir(r.Root.Upper))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
