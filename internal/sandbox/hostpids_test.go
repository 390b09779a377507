package sandbox_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
)

// A sandbox in den's own pid namespace has no process 1 whose end is that of all others.
func TestWhatSharesPidsOfItsOwnWillEndsWithAllItStarted(t *testing.T) {
	b := sandboxtest.New(t, executor(t, sandbox.Options{}))
	seconds := fmt.Sprintf("86400.%d", os.Getpid())
	r := b.Request("(setsid sleep " + seconds + " &); read line; exit 3")
	r.Spec.Linux.Namespaces = slices.DeleteFunc(r.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Stdin = in
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"sh", "-c", "(setsid sleep " + seconds + " &); exit 0"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.(sandbox.Execer).Exec(t.Context(), &sandbox.ExecRequest{ID: "exec", Process: spec.Process})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := e.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Errorf("exec: %+v, %v", exit, err)
	}
	_ = w.Close()
	exit, err := s.Wait(t.Context())
	if err != nil || exit.Code != 3 {
		t.Errorf("%+v, %v", exit, err)
	}
	for _, pid := range sleepers(t, seconds) {
		t.Errorf("process %d outlives its sandbox", pid)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// sleepers are the processes that sleep for so long.
func sleepers(t *testing.T, seconds string) (pids []int) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		text, err := os.ReadFile(p)
		if err != nil || !bytes.HasSuffix(text, []byte("\x00"+seconds+"\x00")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/cmdline", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
