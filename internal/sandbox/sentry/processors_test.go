package sentry_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

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

// What is gathered is all of a sentry and of its processes, those that are started meanwhile among it, and so is what is spread again.
func TestGatheredSentryRunsOnOneProcessor(t *testing.T) {
	var every unix.CPUSet
	if err := unix.SchedGetaffinity(0, &every); err != nil {
		t.Fatal(err)
	}
	if every.Count() < 2 {
		t.Skip("needs two processors")
	}
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	chosen := make([]string, 0, every.Count()) // so that nobody else gathers it
	for n := range 1024 {
		if every.IsSet(n) {
			chosen = append(chosen, strconv.Itoa(n))
		}
	}
	r := b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "while :; do true & wait; done"}, Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: strings.Join(chosen, ",")}},
	})
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	look := make(chan bool)
	done := make(chan struct{})
	go func() {
		defer close(done)
		sentry.Gather(s, &every, func(_ time.Time, ran, waited float64) bool {
			if ran < 0 || waited < 0 || ran > float64(every.Count())+1 {
				t.Errorf("its threads ran on %.2f processors and waited for %.2f", ran, waited)
			}
			select {
			case is := <-look:
				return is
			case <-ctx.Done():
				return false
			}
		}, ctx.Done())
	}()
	for _, gathered := range []bool{true, false, true} {
		for range 2 { // the second time what was decided the first time is done
			select {
			case look <- gathered:
			case <-done:
				t.Fatal("nobody looks any more")
			}
		}
		processors := processorsOf(s)
		for set, n := range processors {
			if gathered != (set.Count() == 1) || len(processors) != 1 {
				t.Errorf("gathered is %v, and %d threads may run on %d processors, in %d sets", gathered, n, set.Count(), len(processors))
			}
		}
		if len(processors) == 0 {
			t.Error("no thread was seen")
		}
	}
	end()
	<-done
	if err := s.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// processorsOf counts the threads of a sentry and of its processes by where they may run.
func processorsOf(s sandbox.Sandbox) map[unix.CPUSet]int {
	sets := map[unix.CPUSet]int{}
	for _, pid := range append(descendants(s.Pid()), s.Pid()) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, dir := range tasks {
			var set unix.CPUSet
			tid, _ := strconv.Atoi(filepath.Base(dir))
			if unix.SchedGetaffinity(tid, &set) == nil {
				sets[set]++
			}
		}
	}
	return sets
}

// A sandbox whose work is serial is gathered without anybody's asking.
func TestSerialSandboxIsGathered(t *testing.T) {
	if !sentry.Gathers() || runtime.NumCPU() < 2 {
		t.Skip("needs two processors, and no more")
	}
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	s, err := b.Exec.Start(t.Context(), b.Request("while :; do true & wait; done"))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // others may keep the machine busy
		sets := processorsOf(s)
		one := len(sets) == 1
		for set := range sets {
			one = one && set.Count() == 1
		}
		if one {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("in a minute it was never on one processor: %v", sets)
		}
	}
	if err := s.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}
