package sentry_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

func TestFrozenPayloadIsSilentUntilThawed(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.Request("while :; do echo on; done")
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.Stdout = w
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	// silent reads until nothing has come for a while, or too much has.
	silent := func() bool {
		buf := make([]byte, 64<<10)
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
			if err := out.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
				return true
			} else if err != nil {
				t.Fatal(err)
			}
		}
		return false
	}
	f := s.(sandbox.Freezer)
	f.Freeze()
	if !silent() {
		t.Error("it goes on while it is frozen")
	}
	f.Thaw()
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error("it does not go on after it is thawed: ", err)
	}
	out.Close()
	_ = s.Signal(unix.SIGKILL) // or it has ended for want of a reader
	if _, err := s.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	f.Freeze()
	f.Thaw()
}

func TestWhatASentryCannotDoIsRefusedOrSaid(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.Request("true")
	r.Spec.Linux.Namespaces = append(r.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"})
	if _, _, err := b.Try(r); !errdefs.IsNotImplemented(err) {
		t.Errorf("a namespace by path: %v", err)
	}
	r = b.Request("true")
	r.Network = "" // the host's
	r.Spec.Linux.Sysctl = map[string]string{"kernel.shmmax": "1"}
	r.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse"}}
	var warnings []string
	r.Warn = func(s string) { warnings = append(warnings, s) }
	b.Run(r)
	if all := strings.Join(warnings, "\n"); !strings.Contains(all, "sysctl") || !strings.Contains(all, "devices") {
		t.Errorf("warnings: %q", warnings)
	}
}
