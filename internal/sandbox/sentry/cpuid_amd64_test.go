package sentry_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

func init() { callers["cpuid"] = callForCPUID }

// callForCPUID asks for a trap at CPUID as a platform does, and for something else of the same call.
func callForCPUID() error {
	if err := sentry.LeaveCPUID(); err != nil {
		return err
	}
	const setCPUID, getCPUID, getFS = 0x1012, 0x1011, 0x1003 // arch_prctl(2)
	var fs uintptr
	_, _, trap := unix.RawSyscall(unix.SYS_ARCH_PRCTL, setCPUID, 0, 0)
	free, _, _ := unix.RawSyscall(unix.SYS_ARCH_PRCTL, getCPUID, 0, 0)
	_, _, other := unix.RawSyscall(unix.SYS_ARCH_PRCTL, getFS, uintptr(unsafe.Pointer(&fs)), 0)
	fmt.Printf("trap: %v, CPUID is free: %d, another: %d\n", trap, free, other)
	return nil
}

// Whether a process traps at CPUID nobody can see from outside. So what is shown is that who has the filter cannot, and that
// a sentry has one more than its own.
func TestNoProcessTrapsAtCPUID(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{callerEnv + "=cpuid"}
	out, err := cmd.CombinedOutput()
	if want := "trap: no such device, CPUID is free: 1, another: 0\n"; string(out) != want || err != nil {
		t.Errorf("a process with the filter says %q, %v; want %q", out, err, want)
	}
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.Request("read line")
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer w.Close()
	r.Stdin = in
	s, err := b.Exec.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if own, all := filters(t, os.Getpid()), filters(t, s.Pid()); all != own+2 {
		t.Errorf("the sentry has %d filters of system calls and the test %d, want two more", all, own)
	}
	w.Close()
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// filters is how many filters of system calls a process has.
func filters(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, found := strings.Cut(string(status), "\nSeccomp_filters:\t")
	if err == nil && !found {
		t.Skip("needs a kernel that counts filters (5.9)")
	}
	line, _, _ := strings.Cut(rest, "\n")
	n, err2 := strconv.Atoi(line)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return n
}
