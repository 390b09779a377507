package sandboxtest

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// beating writes a line whenever it runs for a moment.
const beating = "echo ready; while :; do echo beat; sleep 0.01; done"

func paused(b *Bench) { b.pause(b.Request(beating)) }

// pausedWithLimits is in a cgroup, where there can be one.
func pausedWithLimits(b *Bench) {
	pids := int64(100)
	r := b.RequestFor(sandbox.SpecOptions{
		Args:      []string{"sh", "-c", beating},
		Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}},
	})
	b.pause(r)
}

func (b *Bench) pause(r *sandbox.Request) {
	b.Helper()
	s, lines := b.start(b.Context(), r)
	lines.next()
	p, ok := s.(sandbox.Pauser)
	if !ok {
		b.must(s.Signal(unix.SIGKILL))
		b.Skip("needs an executor that can pause its sandboxes")
	}
	b.must(p.Pause(b.Context()))
	// What was written before is read until nothing comes: then a beat would be a defect.
	for deadline, quiet := time.Now().Add(limit), false; !quiet; {
		if time.Now().After(deadline) {
			b.Fatal("a paused payload goes on")
		}
		b.must(lines.f.SetReadDeadline(time.Now().Add(150 * time.Millisecond)))
		_, err := lines.r.ReadString('\n')
		quiet = errors.Is(err, os.ErrDeadlineExceeded)
	}
	b.must(p.Resume(b.Context()))
	lines.next()
	lines.next()
	b.must(p.Pause(b.Context()))
	b.must(s.Signal(unix.SIGKILL)) // a paused payload can be killed
	ctx, cancel := context.WithTimeout(b.Context(), limit)
	defer cancel()
	if exit, err := s.Wait(ctx); err != nil || exit.Signal != unix.SIGKILL {
		b.Errorf("exit is %+v, %v", exit, err)
	}
	if err := p.Pause(b.Context()); !errors.Is(err, os.ErrProcessDone) {
		b.Errorf("pause after the end: %v", err)
	}
}

// inspector skips the test where a sandbox does not know what it uses.
func (b *Bench) inspector(s sandbox.Sandbox) sandbox.Inspector {
	b.Helper()
	i, ok := s.(sandbox.Inspector)
	if !ok {
		_ = s.Signal(unix.SIGKILL)
		b.Skip("needs an executor whose sandboxes know what they use")
	}
	return i
}

func stats(b *Bench) {
	r := b.Request("(while :; do :; done) & echo ready; read x; kill $!")
	s, end := b.live(r)
	i := b.inspector(s)
	for deadline := time.Now().Add(limit); ; runtime.Gosched() {
		st, err := i.Stats(b.Context())
		b.must(err)
		if st.CPUTotal > 0 && st.MemoryBytes > 64<<10 && st.Pids > 0 && time.Since(st.Read) < time.Hour {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("%+v", st)
		}
	}
	end()
	if _, err := i.Stats(b.Context()); !errors.Is(err, os.ErrProcessDone) {
		b.Errorf("stats after the end: %v", err)
	}
}

// limitsCounted: what was asked for is in force and counted, or a warning names it.
func limitsCounted(b *Bench) {
	memory, pids, quota, period := int64(64<<20), int64(50), int64(20_000), uint64(100_000)
	r := b.RequestFor(sandbox.SpecOptions{
		Args: []string{"sh", "-c", "i=0; while [ $i -lt 60 ]; do sleep 1000 2>/dev/null & i=$((i+1)); done 2>&1 | grep -q -i fork && echo bounded; (while :; do :; done) & " + idle},
		Resources: &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
		},
	})
	if ownKernel(b.Exec) {
		b.Skip("needs a cgroup of the machine's kernel: a sentry looks after its limits itself")
	}
	var warnings []string
	r.Warn = func(s string) { warnings = append(warnings, s) }
	in, w, err := os.Pipe()
	b.must(err)
	defer w.Close()
	r.Stdin = in
	s, lines := b.start(b.Context(), r)
	in.Close()
	defer func() { b.must(s.Signal(unix.SIGKILL)) }()
	if len(warnings) > 0 {
		if !strings.HasPrefix(warnings[0], "limits of memory, cpu and processes are not in force: ") {
			b.Errorf("the warning is %q", warnings)
		}
		b.Skip("needs a cgroup: ", warnings)
	}
	b.want(lines.next(), "bounded\n")
	b.want(lines.next(), "ready\n")
	i := b.inspector(s)
	for deadline := time.Now().Add(limit); ; runtime.Gosched() {
		st, err := i.Stats(b.Context())
		b.must(err)
		if st.MemoryLimitBytes != uint64(memory) || st.PidsLimit != uint64(pids) {
			b.Fatalf("%+v", st)
		}
		// On a machine that others use, too, it may never get so much that it is held.
		if st.Periods > 0 && st.Pids > 1 && st.MemoryBytes > 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("its time is not counted: %+v", st)
		}
	}
}

func statsOfNetwork(b *Bench) {
	r := b.Request("ip link add name d0 type dummy 2>/dev/null; " + idle)
	r.Network = sandbox.NetworkNone
	s, end := b.live(r)
	st, err := b.inspector(s).Stats(b.Context())
	b.must(err)
	for _, n := range st.Interfaces {
		if n.Name == "lo" {
			b.Errorf("the loopback is counted: %+v", st.Interfaces)
		}
	}
	end()
}

func processes(b *Bench) {
	b.Put("etc/passwd", "root:x:0:0::/root:/bin/sh\nworker:x:7:7::/:/bin/sh\n", 0o644)
	s, end := b.live(b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", "sleep 1000 & " + idle + "; kill $!"}, UID: 7}))
	i := b.inspector(s)
	user := "worker"
	e, execs := s.(sandbox.Execer)
	if execs {
		_, err := e.Exec(b.Context(), &sandbox.ExecRequest{ID: "exec", Process: b.process(sandbox.SpecOptions{Args: []string{"sleep", "2000"}, UID: 8}, "")})
		if execs = !errors.Is(err, os.ErrPermission); !execs {
			b.Log("another user's sandbox cannot be looked into without CAP_SYS_PTRACE: ", err)
			user = "7"
		} else {
			b.must(err)
		}
	}
	var got []sandbox.Process
	find := func(command string) *sandbox.Process {
		j := slices.IndexFunc(got, func(p sandbox.Process) bool { return strings.Join(p.Command, " ") == command })
		if j < 0 {
			return nil
		}
		return &got[j]
	}
	var child, extra *sandbox.Process
	for deadline := time.Now().Add(limit); child == nil || extra == nil; runtime.Gosched() {
		var err error
		got, err = i.Processes(b.Context())
		b.must(err)
		child = find("sleep 1000")
		if extra = find("sleep 2000"); !execs {
			extra = &sandbox.Process{UID: 8, User: "8"}
		}
		if time.Now().After(deadline) {
			b.Fatalf("processes are %+v", got)
		}
	}
	if child.UID != 7 || child.User != user || child.TTY != "?" || child.Name == "" || !strings.ContainsAny(child.State, "SRDI") ||
		time.Since(child.Started) > time.Hour || time.Since(child.Started) < -time.Minute {
		b.Errorf("%+v", child)
	}
	if !slices.ContainsFunc(got, func(p sandbox.Process) bool { return p.Pid == child.PPid }) {
		b.Errorf("the parent of %+v is not there", child)
	}
	if extra.UID != 8 || extra.User != "8" {
		b.Errorf("%+v", extra)
	}
	end()
}
