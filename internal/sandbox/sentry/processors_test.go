package sentry_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// A choice of processors is in force for all threads of a sentry and of the payload's processes, and the payload
// cannot have more.
func TestProcessorsAreThoseThatWereChosen(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	last := -1
	for n := range 1024 {
		if all.IsSet(n) {
			last = n
		}
	}
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "taskset -p 3 $$ >/dev/null 2>&1; nproc; true & wait; read x"}, Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: fmt.Sprint(last)}},
	})
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	out, said, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.Stdin, r.Stdout = in, said
	s, err := b.Exec.Start(t.Context(), r)
	in.Close()
	said.Close()
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 2)
	if _, err := io.ReadFull(out, line); err != nil || line[0] < '1' || line[0] > '2' { // its own list it may change
		t.Errorf("nproc says %q, %v", line, err)
	}
	seen := 0
	for _, pid := range append(descendants(s.Pid()), s.Pid()) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, dir := range tasks {
			var tid int
			var set unix.CPUSet
			if _, err := fmt.Sscan(filepath.Base(dir), &tid); err != nil || unix.SchedGetaffinity(tid, &set) != nil {
				continue // it has ended
			}
			seen++
			if set.Count() != 1 || !set.IsSet(last) {
				t.Errorf("thread %d of %d may use %d processors", tid, pid, set.Count())
			}
		}
	}
	if seen < 3 {
		t.Errorf("there are %d threads", seen)
	}
	w.Close()
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code > 1 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// descendants are the processes below one.
func descendants(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		for f := range strings.FieldsSeq(string(text)) {
			var n int
			if _, err := fmt.Sscan(f, &n); err == nil {
				all = append(append(all, n), descendants(n)...)
			}
		}
	}
	return all
}
