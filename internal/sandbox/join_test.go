package sandbox_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sys"
)

// TestHelperAdopts is not a test: it is the next den, which TestNextDenJoinsTheUserNamespaceOfWhatLives starts.
func TestHelperAdopts(t *testing.T) {
	dir := os.Getenv("DEN_TEST_ADOPT")
	if dir == "" {
		t.Skip("needs a test that starts it")
	}
	s, err := adopter(t).Adopt(t.Context(), "adopted", dir)
	if errdefs.IsFailedPrecondition(err) {
		t.Log("refused:", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"id", "-u"}, Env: []string{"PATH=/bin"}, UID: 33})
	if err != nil {
		t.Fatal(err)
	}
	var out sandboxtest.Buffer
	e, err := s.(sandbox.Execer).Exec(t.Context(), &sandbox.ExecRequest{ID: "exec", Process: spec.Process, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := e.Wait(t.Context()); err != nil || exit.Code != 0 || out.String() != "33\n" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if err := s.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if exit, err := s.Wait(t.Context()); err != nil || exit.Signal != unix.SIGKILL {
		t.Errorf("%+v, %v", exit, err)
	}
	t.Log("adopted")
}

func TestNextDenJoinsTheUserNamespaceOfWhatLives(t *testing.T) {
	if os.Geteuid() != 0 || !sys.InInitialUserns() {
		t.Skip("needs root, to become a plain user who has not entered a user namespace yet")
	}
	cred, home := subidUser(t)
	dir := detachDir(t)
	bin, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.WriteFile(filepath.Join(dir, "sandbox.test"), bin, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(cred[0]), int(cred[1])))
	}); err != nil {
		t.Fatal(err)
	}
	run := func(env ...string) string {
		cmd := exec.Command(filepath.Join(dir, "sandbox.test"), "-test.v", "-test.run=^(TestHelperStartsDetached|TestHelperAdopts)$")
		cmd.Dir = dir
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + filepath.Join(dir, "tmp")}, env...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(cred)}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	out := run("DEN_TEST_DETACH="+dir, "DEN_TEST_SCRIPT=while :; do sleep 1000; done", "DEN_FAILPOINTS=sandbox.detach.after-release=kill")
	if strings.Contains(out, "needs ") && strings.Contains(out, "SKIP: TestHelperStartsDetached") {
		t.Skip("needs sandboxes as a plain user: ", out)
	}
	detach := filepath.Join(dir, "detach")
	if out := run("DEN_TEST_ADOPT=" + detach); !strings.Contains(out, "refused: sandbox adopted: adopt: it runs in another user namespace") {
		t.Errorf("who has not joined: %s", out)
	}
	if out := run("DEN_TEST_ADOPT="+detach, "DEN_TEST_JOIN="+detach); !strings.Contains(out, "adopted\n") || strings.Contains(out, "FAIL") {
		t.Errorf("who has joined: %s", out)
	}
	if !tryLock(t, filepath.Join(dir, "lease")) {
		t.Error("the lease is still held")
	}
	// Nobody lives there any more: who would join makes a namespace of his own.
	if out := run("DEN_TEST_ADOPT="+detach, "DEN_TEST_JOIN="+detach); !strings.Contains(out, "join user namespace: <nil>") {
		t.Errorf("who has nobody to join: %s", out)
	}
}
