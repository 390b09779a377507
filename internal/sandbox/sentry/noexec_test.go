package sentry_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// noExecDir is a directory from which nothing can be executed, with a busybox in it.
func noExecDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
		t.Skip("needs a mount: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	data, err := os.ReadFile(sandboxtest.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestProgramOnANoExecFileSystemIsRefusedAndDoesNotCrash(t *testing.T) {
	vol := noExecDir(t)
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.Request("exec 2>&1; /vol/busybox echo hi; echo $?; cp /vol/busybox /tmp/ && /tmp/busybox echo copied")
	b.Link("bin/cp", "busybox")
	r.Mounts = []oci.Mount{{Type: "bind", Source: vol, Target: "/vol"}}
	if out, _ := b.Run(r); !strings.Contains(out, "Permission denied") || !strings.HasSuffix(out, "126\ncopied\n") {
		t.Errorf("in a bind: %s", out)
	}

	up := filepath.Join(vol, "up")
	if err := os.Mkdir(up, 0o755); err != nil {
		t.Fatal(err)
	}
	r = b.Request("mkdir /new && cp /bin/busybox /new/ && /new/busybox echo written")
	r.Root.Upper = filepath.Join(up, "image")
	var warning string
	r.Warn = func(s string) { warning = s }
	if out, _ := b.Run(r); out != "written\n" || !strings.Contains(warning, "noexec") {
		t.Errorf("what was written: %q, warning %q", out, warning)
	}
	if _, err := os.Stat(r.Root.Upper); err != nil {
		t.Error("the changes are lost: ", err)
	}

	e := &imageExecutor{Executor: newExecutor(t, sentry.Options{}), dir: vol}
	images := sandboxtest.New(t, e)
	if _, _, err := images.Try(images.Request("true")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "noexec") {
		t.Errorf("layers: %v", err)
	}
	r = b.Request("true")
	r.Root = oci.Mount{Type: "bind", Source: vol}
	if _, _, err := b.Try(r); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("root: %v", err)
	}
}
