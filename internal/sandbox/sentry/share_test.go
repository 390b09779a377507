package sentry_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// beside starts a sandbox that has the network of m, and changes the request before.
func (m *machine) beside(e *sentry.Executor, script string, change func(*sandbox.Request)) (*machine, *sandboxtest.Bench) {
	m.t.Helper()
	b := sandboxtest.New(m.t, e)
	b.Link("bin/ping", "busybox")
	r := b.Request(script)
	r.NetworkOf = m.Sandbox
	if change != nil {
		change(r)
	}
	s, err := e.Start(m.t.Context(), r)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = s.Signal(unix.SIGKILL)
		if _, err := s.Wait(context.Background()); err != nil {
			m.t.Error(err)
		}
	})
	return &machine{m.t, s}, b
}

const forever = "while :; do sleep 60; done"

func TestJoinedSandboxHasTheNetworkAndNothingElse(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	wire := cables(t)
	one, peer := boot(t, e, "", device("eth0", wire[0], 1)), boot(t, e, "", device("eth0", wire[1], 2))
	two, _ := one.beside(e, forever, func(r *sandbox.Request) { r.Spec.Hostname = "two" })
	contains(t, two.do("ip addr; hostname"), "10.88.0.1/24", "two")
	contains(t, two.do("ping -c 1 -W 20 10.88.0.2"), " 0% packet loss")
	two.do("(nc -l -p 5432 </etc/passwd >/dev/null 2>&1 &) ; while ! grep -q :1538 /proc/net/tcp*; do sleep 0.05; done")
	contains(t, one.do("nc -l -p 5432 </dev/null 2>&1 || echo refused"), "Address already in use", "refused")
	contains(t, one.do("nc -w 20 127.0.0.1 5432 </dev/null"), "root:x:0:0")
	two.do("(nc -l -p 5433 </etc/passwd >/dev/null 2>&1 &) ; while ! grep -q :1539 /proc/net/tcp*; do sleep 0.05; done")
	contains(t, peer.do("nc -w 20 10.88.0.1 5433 </dev/null"), "root:x:0:0")
	one.do("echo secret >/tmp/secret; sleep 77 >/dev/null 2>&1 &")
	if got := two.do("ls /tmp; ps; kill -9 -1; ls /proc"); strings.Contains(got, "secret") || strings.Contains(got, "sleep 77") || !strings.Contains(got, "sleep 60") {
		t.Errorf("it sees the other's files or processes, or not its own:\n%s", got)
	}
	if got := one.do("ps; hostname"); strings.Count(got, "sleep 60") != 2 || !strings.Contains(got, "sleep 77") || strings.Contains(got, "two") {
		t.Errorf("it is seen, or was killed:\n%s", got) // the script and the program have these words
	}
	contains(t, one.do("echo alive"), "alive")
}

func TestSandboxesOfOneNetworkEndEachForItself(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	wire := cables(t)
	one := boot(t, e, "", device("eth0", wire[0], 1))
	for n := range 3 {
		b := sandboxtest.New(t, e)
		r := b.Request(fmt.Sprintf("echo new >/file; rm /etc/passwd; exit %d", n))
		r.NetworkOf = one.Sandbox
		if out, exit := b.Run(r); exit.Code != n {
			t.Errorf("%+v, %s", exit, out)
		}
		if got := b.Changes(); got != "etc etc/passwd file" {
			t.Errorf("the changes are %q", got)
		}
	}
	two, _ := one.beside(e, forever, nil)
	three, _ := two.beside(e, forever, nil) // of who has joined
	exec := make(chan string, 1)
	go func() { exec <- three.do("sleep 60") }()
	if err := one.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := one.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Fatalf("%+v, %v", exit, err)
	}
	two.do("(nc -l -p 80 </etc/passwd >/dev/null 2>&1 &) ; while ! grep -q :0050 /proc/net/tcp*; do sleep 0.05; done")
	contains(t, three.do("nc -w 20 127.0.0.1 80 </dev/null"), "root:x:0:0")
	if got := two.do("ip addr"); strings.Contains(got, "eth0") {
		t.Errorf("it still has the device of who has ended:\n%s", got)
	}
	b := sandboxtest.New(t, e)
	r := b.Request("true")
	r.NetworkOf = one.Sandbox
	if _, err := e.Start(t.Context(), r); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("to join who has ended: %v", err)
	}
	if err := three.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-exec
	contains(t, two.do("echo alive"), "alive")
}

func TestJoinedSandboxHoldsItsLeaseNoLongerThanItLives(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone)
	dir := t.TempDir()
	for range 4 {
		held, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(held.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		b := sandboxtest.New(t, e)
		r := b.Request("true")
		r.NetworkOf, r.Hold = one.Sandbox, []*os.File{held}
		_, _ = b.Run(r)
		held.Close()
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Error("the lease is held after Wait: ", err)
		}
		f.Close()
	}
}

func TestPausedSandboxLetsItsNeighbourRun(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone)
	two, _ := one.beside(e, forever, nil)
	for _, m := range []*machine{two, one} {
		other := one
		if m == one {
			other = two
		}
		if err := m.Sandbox.(sandbox.Pauser).Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		contains(t, other.do("echo alive"), "alive")
	}
	if err := two.Signal(unix.SIGKILL); err != nil { // paused, beside one that is paused
		t.Fatal(err)
	}
	if exit, err := two.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestCancelledStartOfJoinedSandboxLeavesTheOther(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone)
	b := sandboxtest.New(t, e)
	r := b.Request(forever)
	r.NetworkOf = one.Sandbox
	ctx, cancel := context.WithCancel(t.Context())
	s, err := e.Start(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if exit, err := s.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Errorf("%+v, %v", exit, err)
	}
	r = b.RequestFor(sandbox.SpecOptions{Args: []string{"no-such"}})
	r.NetworkOf, r.Init = one.Sandbox, true
	if _, _, err := b.Try(r); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a missing program: %v", err)
	}
	contains(t, one.do("ps; echo alive"), "alive")
}

func TestEachSandboxOfOneNetworkHasItsOwnFilter(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone) // with Docker's
	const try = "mkdir /tmp/d 2>&1 && echo made; unshare -U true 2>&1 && echo unshared"
	for _, c := range []struct {
		profile *specs.LinuxSeccomp
		want    string
	}{
		{nil, "made\nunshared\n"},
		{answering(answer("mkdir", specs.ActErrno, uint(unix.EDOM)), answer("mkdirat", specs.ActErrno, uint(unix.EDOM))),
			"mkdir: can't create directory '/tmp/d': Numerical argument out of domain\nunshared\n"},
	} {
		two, _ := one.beside(e, forever, func(r *sandbox.Request) {
			r.Spec.Linux.Seccomp = c.profile
			caps := r.Spec.Process.Capabilities
			caps.Bounding = append(caps.Bounding, "CAP_SYS_ADMIN")
		})
		if got := two.do(try); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		if got := one.do("rmdir /tmp/d; " + try); !strings.Contains(got, "made\n") || strings.Contains(got, "unshared") {
			t.Errorf("the one that was there before: %q", got)
		}
	}
}

// Jobs that come and go beside a service leave nothing in its sentry.
func TestManySandboxesOfOneNetworkLeaveNothingInTheSentry(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone)
	bind := t.TempDir()
	run := func() {
		b := sandboxtest.New(t, e)
		r := b.RequestFor(sandbox.SpecOptions{Args: []string{"sh", "-c", "echo x >/new; echo y >/bound/y; sleep 1000 & exec 3</etc/passwd; test -t 1"}, Env: []string{"PATH=/bin"}, Terminal: true})
		r.NetworkOf = one.Sandbox
		r.Mounts = []oci.Mount{{Type: "bind", Source: bind, Target: "/bound"}}
		if out, exit := b.Run(r); exit.Code != 0 {
			t.Errorf("%+v, %s", exit, out)
		}
	}
	open := func() int {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", one.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	run()
	before := open()
	for range 4 {
		run()
	}

	// One of a task that is just being taken down may come and go.
	if after := open(); after > before+1 {
		t.Errorf("%d descriptors are open, %d were", after, before)
		out, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", one.Pid())).CombinedOutput()
		t.Logf("%s", out)
	}
}

func TestSandboxSharesTheProcessIDsItAsksFor(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone)
	one.do("sleep 77 >/dev/null 2>&1 &")
	share := func(r *sandbox.Request) { r.PIDsOf, r.IPCOf = one.Sandbox, one.Sandbox }
	two, _ := one.beside(e, forever, share)
	contains(t, two.do("ps"), "sleep 77")
	contains(t, two.do("readlink /proc/self/ns/ipc"), one.do("readlink /proc/self/ns/ipc"))
	two.do("sleep 88 >/dev/null 2>&1 &")
	contains(t, one.do("ps"), "sleep 88")
	three, _ := one.beside(e, "exec sleep 99", share)
	if err := two.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := two.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Fatalf("%+v, %v", exit, err)
	}
	got := one.do("ps")
	contains(t, got, "sleep 77", "sleep 99")
	if strings.Contains(got, "sleep 88") {
		t.Errorf("what it has left behind still runs:\n%s", got)
	}
	// The end of process 1 is the end of all.
	if err := one.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := three.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Errorf("%+v, %v", exit, err)
	}
	b := sandboxtest.New(t, e)
	r := b.Request("true")
	r.PIDsOf = boot(t, e, sandbox.NetworkNone).Sandbox
	if _, err := e.Start(t.Context(), r); !errdefs.IsNotImplemented(err) {
		t.Errorf("without its network: %v", err)
	}
}

func TestLimitsOfAJoinedSandboxHoldNobody(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	one := boot(t, e, sandbox.NetworkNone)
	two, _ := one.beside(e, "exec sleep 600", nil) // which forks no more
	quota, bytes, pids := int64(1000), int64(1<<20), int64(2)
	err := two.Sandbox.(sandbox.Limiter).SetLimits(t.Context(), &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Quota: &quota}, Memory: &specs.LinuxMemory{Limit: &bytes}, Pids: &specs.LinuxPids{Limit: &pids},
	})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, two.do("exec 2>&1; sleep 0; echo x"), "fork")
	contains(t, one.do("dd if=/dev/zero of=/dev/shm/f bs=1M count=20 2>/dev/null && echo alive"), "alive")
	if st, err := one.Sandbox.(sandbox.Inspector).Stats(t.Context()); err != nil || st.ThrottledPeriods > 0 {
		t.Errorf("%+v, %v", st, err)
	}
}
