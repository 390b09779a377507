package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sys"
)

// TestHelperRunsUntilItIsKilled is not a test: it is the den that
// TestPayloadDiesWithDenAndTheLeaseAfterIt kills.
func TestHelperRunsUntilItIsKilled(t *testing.T) {
	dir := os.Getenv("DEN_TEST_LEASE")
	if dir == "" {
		t.Skip("needs TestPayloadDiesWithDenAndTheLeaseAfterIt")
	}
	lease, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lease.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	b := sandboxtest.New(t, executor(t, sandbox.Options{}))
	r := b.Request("trap '' TERM HUP INT; (setsid sleep 1000 &); while :; do sleep 1000; done")
	r.Hold = []*os.File{lease}
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("payload %d\n", s.Pid())
	_, _ = s.Wait(t.Context())
}

func TestPayloadDiesWithDenAndTheLeaseAfterIt(t *testing.T) { diesWithDen(t) }

// The payload's children have left its session, and it has no pid namespace with
// which they would end.
func TestPayloadWithSharedPidsDiesWithDenAndTheLeaseAfterIt(t *testing.T) {
	t.Setenv("DEN_TEST_SHARE_PIDS", "1")
	diesWithDen(t)
}

func diesWithDen(t *testing.T) {
	executor(t, sandbox.Options{})
	dir := t.TempDir()
	den := exec.Command(os.Args[0], "-test.run=^TestHelperRunsUntilItIsKilled$")
	den.Env = append(os.Environ(), "DEN_TEST_LEASE="+dir, "TMPDIR="+t.TempDir())
	den.Stderr = os.Stderr
	out, err := den.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := den.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = den.Process.Kill() })
	var pid int
	sc := bufio.NewScanner(out)
	for pid == 0 && sc.Scan() {
		_, _ = fmt.Sscanf(sc.Text(), "payload %d", &pid)
	}
	if pid == 0 {
		t.Fatal("no payload")
	}
	if tryLock(t, dir) {
		t.Fatal("nobody has the lease")
	}
	if err := den.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	locked := make(chan error, 1)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("the lease was not released: the holder or the payload still lives")
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the lease is released and the payload lives: %v", err)
	}
	_ = den.Wait()
}

func tryLock(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// TestPlainUserPassesTheContract runs the suite once more as the first user that has a
// range of ids.
func TestPlainUserPassesTheContract(t *testing.T) {
	if os.Geteuid() != 0 || !sys.InInitialUserns() {
		t.Skip("needs root: TestContract runs as a plain user already")
	}
	cred, home := subidUser(t)
	dir := t.TempDir()
	for _, d := range []string{dir, dir + "/tmp"} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chown(d, int(cred[0]), int(cred[1]))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // made for one user
		t.Fatal(err)
	}
	bin, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/sandbox.test", bin, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dir+"/sandbox.test", "-test.run=^(TestContract|TestPayload.*DiesWithDenAndTheLeaseAfterIt|Test.*Detached.*|TestDenKilledAtAnyStep.*)$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + dir + "/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(cred)}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: TestContract ") {
		t.Errorf("the contract was not run:\n%s", out)
	}
}
