package sentry_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// chatter starts a sandbox that writes without end, and what reads it.
func chatter(t *testing.T, e *sentry.Executor, change func(*sandbox.Request)) (sandbox.Sandbox, *os.File) {
	t.Helper()
	b := sandboxtest.New(t, e)
	r := b.Request("while :; do echo x; done")
	if change != nil {
		change(r)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Stdout = w
	s, err := e.Start(t.Context(), r)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Signal(unix.SIGKILL)
		out.Close()
		if exit, err := s.Wait(context.Background()); err != nil || exit.Signal != unix.SIGKILL {
			t.Errorf("%+v, %v", exit, err)
		}
	})
	return s, out
}

// drain reads what is there until nothing comes any more.
func drain(t *testing.T, f *os.File) {
	t.Helper()
	for buf := make([]byte, 64<<10); ; {
		if err := f.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestPausedSandboxStandsStillUntilResumedOrKilled(t *testing.T) {
	s, out := chatter(t, newExecutor(t, sentry.Options{}), nil)
	p := s.(sandbox.Pauser)
	for range 2 { // again makes no difference
		if err := p.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	drain(t, out)
	s.(sandbox.Freezer).Freeze()
	s.(sandbox.Freezer).Thaw() // one who thaws does not resume
	drain(t, out)
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal("it does not go on: ", err)
	}
	if err := p.Pause(t.Context()); err != nil { // and is killed so
		t.Fatal(err)
	}
}

func TestLimitOfProcessorsHolds(t *testing.T) {
	quota, period := int64(20_000), uint64(100_000)
	s, _ := chatter(t, newExecutor(t, sentry.Options{}), func(r *sandbox.Request) {
		r.Spec.Process.Args = []string{"/bin/sh", "-c", "while :; do :; done & while :; do :; done"}
		r.Spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	})
	i := s.(sandbox.Inspector)
	first, err := i.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := first
	// It has to be throttled several times, and what it used while den had no time for it is made up for: what
	// the first period allows, what is used before it is held, and the rate.
	within := func() bool {
		wall := last.Read.Sub(first.Read)
		return last.CPUTotal-first.CPUTotal <= 20*time.Millisecond+80*time.Millisecond+wall*3/10
	}
	for deadline := time.Now().Add(time.Minute); last.ThrottledPeriods < 5 || !within(); {
		// To be asked costs the sentry time, of which it has a fifth of a processor.
		time.Sleep(100 * time.Millisecond)
		if time.Now().After(deadline) {
			t.Fatalf("first %+v, then %+v", first, last)
		}
		if last, err = i.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if last.Throttled == 0 || last.Periods < last.ThrottledPeriods {
		t.Errorf("%+v", last)
	}
}

func TestInspectorKnowsProcessesAndUse(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	b := sandboxtest.New(t, e)
	b.Put("etc/passwd", "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:/bin/sh\n", 0o644)
	before := time.Now()
	wire := cables(t)
	r := b.Request("dd if=/dev/zero of=/dev/shm/f bs=1M count=20 2>/dev/null; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo up; exec sleep 600 'an arg'")
	limit, pids := int64(1<<30), int64(50)
	r.Spec.Process.User.UID = 33
	r.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}}
	r.Spec.Process.Args[2] = strings.Replace(r.Spec.Process.Args[2], "600 'an arg'", "600 0", 1)
	r.Interfaces = []oci.Interface{device("eth0", wire[0], 1), device("eth1", wire[1], 2)}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.Stdout = w
	s, err := e.Start(t.Context(), r)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	i := s.(sandbox.Inspector)
	var ps []sandbox.Process
	for len(ps) != 1 || ps[0].Name != "sleep" { // it executes yet
		if ps, err = i.Processes(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p := ps[0]
	if p.Pid != 1 || p.PPid != 0 || p.UID != 33 || p.User != "www" || p.TTY != "?" || !slices.Equal(p.Command, []string{"sleep", "600", "0"}) || p.RSSBytes == 0 {
		t.Errorf("%+v", p)
	}
	if p.Started.Before(before.Add(-time.Second)) || p.Started.After(time.Now().Add(time.Second)) {
		t.Errorf("started at %v, it is %v", p.Started, time.Now())
	}
	st, err := i.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.MemoryBytes < 20<<20 || st.MemoryPeakBytes < st.MemoryBytes || st.MemoryLimitBytes != 1<<30 || st.Pids != 1 || st.PidsLimit != 50 {
		t.Errorf("%+v", st)
	}
	if st.CPUTotal <= 0 || st.CPUTotal != st.CPUUser+st.CPUSystem || st.CPUTotal > time.Since(before)*16 {
		t.Errorf("%+v", st)
	}
	if len(st.Interfaces) != 2 || st.Interfaces[0].Name != "eth0" || st.Interfaces[1].Name != "eth1" {
		t.Errorf("%+v", st.Interfaces)
	}
	_ = s.Signal(unix.SIGKILL)
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Stats(t.Context()); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after the end: %v", err)
	}
}

func TestTrafficOfADeviceIsCounted(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	wire := cables(t)
	one := boot(t, e, "", device("eth0", wire[0], 1))
	boot(t, e, "", device("eth0", wire[1], 2))
	contains(t, one.do("ping -c 3 -s 1000 -W 20 10.88.0.2"), " 0% packet loss")
	st, err := one.Sandbox.(sandbox.Inspector).Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := st.Interfaces[0]; n.RxPackets < 3 || n.TxPackets < 3 || n.RxBytes < 3000 || n.TxBytes < 3000 || n.RxErrors != 0 {
		t.Errorf("%+v", n)
	}
}

func TestChangesSoFarAreALayer(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	m := boot(t, e, sandbox.NetworkNone)
	m.do("mkdir -p /a/b && echo one >/a/b/c && rm /etc/passwd && ln -s c /a/b/l")
	c := m.Sandbox.(sandbox.Changer)
	list := func() string {
		var out bytes.Buffer
		if err := c.ExportChanges(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		var names []string
		for tr := tar.NewReader(&out); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return strings.Join(names, " ")
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
		}
	}
	if got, want := list(), "a/ a/b/ a/b/c a/b/l etc/ etc/.wh.passwd"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := m.Sandbox.(sandbox.Pauser).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	list()
	if err := m.Sandbox.(sandbox.Pauser).Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.do("rm -r /a")
	if got, want := list(), "etc/ etc/.wh.passwd"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	wrong := errors.New("the reader has enough")
	if err := c.ExportChanges(t.Context(), writerFunc(func([]byte) (int, error) { return 0, wrong })); !errors.Is(err, wrong) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestSandboxThatShouldOutliveDenIsRefused(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.Request("true")
	r.Detach = t.TempDir()
	if _, _, err := b.Try(r); !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v", err)
	}
}
