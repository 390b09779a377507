package sentry_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// runTo runs a request to its end and returns what it said.
func runTo(t *testing.T, e sandbox.Executor, r *sandbox.Request) (string, sandbox.Sandbox) {
	t.Helper()
	var out, errs bytes.Buffer
	r.Stdout, r.Stderr = &out, &errs
	s, err := e.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("exit %+v, %v: %s", exit, err, &errs)
	}
	return out.String(), s
}

// TestManySandboxesNeedOneSentryEach bounds what steps cost in processes.
func TestManySandboxesNeedOneSentryEach(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	const steps = 4
	for range steps {
		r := sandboxtest.New(t, e).Request("true")
		r.Network = sandbox.NetworkNone
		runTo(t, e, r)
	}
	// Two may wait for steps that do not come.
	if n := e.Spawned(); n < steps || n > steps+2 {
		t.Errorf("%d sandboxes took %d sentries", steps, n)
	}
}

// TestFixedFileIsShownWithoutAGofer has what a build binds: its network's files and its secrets.
func TestFixedFileIsShownWithoutAGofer(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	b := sandboxtest.New(t, e)
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("hello\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(file, when, when); err != nil {
		t.Fatal(err)
	}
	const script = "cat /etc/f; stat -c '%a %u %g %s %Y %F' /etc/f; echo x 2>/dev/null >>/etc/f || echo read-only"
	const want = "hello\n640 0 0 6 1700000000 regular file\nread-only\n"
	for _, c := range []struct {
		name    string
		options []string
		fixed   bool
		gofer   bool
	}{
		{"fixed", []string{"bind", "ro"}, true, false},
		{"may change", []string{"bind", "ro"}, false, true},
	} {
		r := b.Request(script)
		r.Root.Lower, r.Root.Upper, r.Network = []string{image(t, b.Lower)}, "", sandbox.NetworkNone
		r.Mounts = []oci.Mount{{Type: "bind", Source: file, Target: "/etc/f", Options: c.options, Fixed: c.fixed}}
		out, s := runTo(t, e, r)
		if out != want {
			t.Errorf("%s: %q, want %q", c.name, out, want)
		}
		if got := sentry.HasGofer(s); got != c.gofer {
			t.Errorf("%s: there is a gofer: %v", c.name, got)
		}
	}
	// What may be written to is no copy, whatever is said of it.
	r := b.Request("echo more >>/etc/f")
	r.Mounts = []oci.Mount{{Type: "bind", Source: file, Target: "/etc/f", Options: []string{"bind"}, Fixed: true}}
	runTo(t, e, r)
	if got, err := os.ReadFile(file); err != nil || string(got) != "hello\nmore\n" {
		t.Errorf("the file is %q, %v", got, err)
	}
}

// image is a directory in image form.
func image(t *testing.T, dir string) string {
	t.Helper()
	m := oci.Mount{Type: "overlay", Lower: []string{dir}}
	if err := (&imageExecutor{dir: t.TempDir()}).images(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
	return m.Lower[0]
}

// Nothing of den's environment is in a sentry's, and what is keeps it from collecting garbage
// before its packages are initialized.
func TestEnvironmentOfASentry(t *testing.T) {
	t.Setenv("DEN_TEST_TOKEN", "secret")
	e := newExecutor(t, sentry.Options{})
	s, err := e.Start(t.Context(), sandboxtest.New(t, e).Request("read line"))
	if err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Pid()))
	if err != nil || string(env) != "GOGC=off\x00" {
		t.Errorf("the sentry has %q, %v", env, err)
	}
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A sentry that was expected is the first sandbox's, and expecting more makes none.
func TestExpectedSentryIsTheFirstOne(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	for range 2 {
		e.Expect(t.Context(), sandbox.NetworkNone)
	}
	if n := e.Spawned(); n != 1 {
		t.Errorf("%d sentries were expected, want 1", n)
	}
	r := sandboxtest.New(t, e).Request("true")
	r.Network = sandbox.NetworkNone
	runTo(t, e, r)
	e.Expect(t.Context(), sandbox.NetworkNone)
	if n := e.Spawned(); n != 1 {
		t.Errorf("a sandbox that was expected took %d sentries, want 1", n)
	}
	other := newExecutor(t, sentry.Options{})
	other.Expect(t.Context(), sandbox.NetworkNone)
	r = sandboxtest.New(t, other).Request("true")
	r.Network = sandbox.NetworkHost
	if out, _ := runTo(t, other, r); out != "" || other.Spawned() != 2 {
		t.Errorf("one with another network says %q and took %d sentries, want 2", out, other.Spawned())
	}
}

// A sentry that was started before it was known whether it runs is the first sandbox's, and gives way to one with
// the network that is expected.
func TestSpareSentryIsTheFirstOne(t *testing.T) {
	e := newExecutor(t, sentry.Options{Spare: sentry.NewSpare(sandbox.NetworkNone)})
	e.Expect(t.Context(), sandbox.NetworkNone)
	r := sandboxtest.New(t, e).Request("echo ran")
	r.Network = sandbox.NetworkNone
	if out, _ := runTo(t, e, r); out != "ran\n" || e.Spawned() != 1 {
		t.Errorf("with a spare sentry a sandbox says %q and took %d, want 1", out, e.Spawned())
	}
	other := newExecutor(t, sentry.Options{Spare: sentry.NewSpare(sandbox.NetworkHost)})
	other.Expect(t.Context(), sandbox.NetworkNone)
	r = sandboxtest.New(t, other).Request("echo ran")
	r.Network = sandbox.NetworkNone
	if out, _ := runTo(t, other, r); out != "ran\n" || other.Spawned() != 2 {
		t.Errorf("with a spare one on another network it says %q and took %d, want 2", out, other.Spawned())
	}
	spare := sentry.NewSpare(sandbox.NetworkNone)
	holder := spare.Holder()
	for range 2 {
		spare.End()
	}
	if err := unix.Kill(holder, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a spare sentry that ended has a holder: %v", err)
	}
	(*sentry.Spare)(nil).End()
}
