package sandboxtest

import (
	"context"
	"os"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// greedy makes forty processes, uses memory or a processor, as it is told.
const greedy = `echo ready
while read what; do
	case $what in
	fork) (i=0; p=; while [ $i -lt 40 ]; do sleep 1000 & p="$p $!"; i=$((i+1)); done; kill $p) >/dev/null 2>&1 && echo free || echo bounded ;;
	eat) dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null && echo free || echo bounded ;;
	spin) (while :; do :; done) & echo spins ;;
	esac
done`

// Limited are the resources that the tests of limits set.
func Limited(memoryBytes, pids, quotaMicroseconds int64) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if memoryBytes > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &memoryBytes}
	}
	if pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	if period := uint64(100_000); quotaMicroseconds > 0 {
		r.CPU = &specs.LinuxCPU{Quota: &quotaMicroseconds, Period: &period}
	}
	return r
}

// limitsChanged begins without limits, sets some, changes and lifts them.
func limitsChanged(b *Bench) {
	r := b.Request(greedy)
	in, w, err := os.Pipe()
	b.must(err)
	defer w.Close()
	r.Stdin = in
	s, lines := b.start(b.Context(), r)
	in.Close()
	ended := false
	defer func() {
		if !ended {
			b.must(s.Signal(unix.SIGKILL))
		}
	}()
	b.want(lines.next(), "ready\n")
	l, ok := s.(sandbox.Limiter)
	if !ok {
		b.Skip("needs an executor that can limit its sandboxes")
	}
	if err := l.SetLimits(b.Context(), Limited(0, 20, 0)); errdefs.IsUnavailable(err) {
		b.Skip("needs a cgroup: ", err)
	} else {
		b.must(err)
	}
	ask := func(what, want string) {
		b.Helper()
		_, err := w.WriteString(what + "\n")
		b.must(err)
		b.want(lines.next(), want+"\n")
	}
	ask("fork", "bounded")
	b.must(l.SetLimits(b.Context(), nil))
	ask("fork", "free")
	b.must(l.SetLimits(b.Context(), Limited(64<<20, 500, 20_000)))
	ask("spin", "spins")
	i := b.inspector(s)
	for deadline := time.Now().Add(limit); ; runtime.Gosched() {
		st, err := i.Stats(b.Context())
		b.must(err)
		if st.MemoryLimitBytes != 64<<20 || st.PidsLimit != 500 {
			b.Fatalf("%+v", st)
		}
		if st.Periods > 0 {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("its time is not counted: %+v", st)
		}
	}
	b.must(l.SetLimits(b.Context(), Limited(48<<20, 0, 0)))
	_, err = w.WriteString("eat\n")
	b.must(err)
	if ownKernel(b.Exec) { // it ends all that runs in the sandbox
		ended = true
		ctx, cancel := context.WithTimeout(b.Context(), limit)
		defer cancel()
		if exit, err := s.Wait(ctx); err != nil || exit.Signal != unix.SIGKILL {
			b.Errorf("exit is %+v, %v", exit, err)
		}
		return
	}
	b.want(lines.next(), "bounded\n")
}
