package sentry_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// callerEnv makes this test's binary a program that makes system calls, in the way that the variable names.
const callerEnv = "DEN_TEST_CALLER"

// callers are further ways, of tests for some architectures.
var callers = map[string]func() error{}

// Errnos of the tests' own, that nothing else answers.
const (
	errnoCall     = 77
	errnoArgument = 78
	errnoNoEntry  = 79
	errnoOwn      = 80
)

// oddPersonality is one that Docker's profile refuses.
const oddPersonality = 5

// call prints how system calls end that the tests' profiles have an answer for.
func call(how string) error {
	runtime.LockOSThread()
	if call := callers[how]; call != nil {
		return call()
	}
	switch how {
	case "child":
		cmd := exec.Command("/proc/self/exe")
		cmd.Env, cmd.Stdout, cmd.Stderr = []string{callerEnv + "=direct"}, os.Stdout, os.Stderr
		return cmd.Run()
	case "filter":
		if err := filterOneself(); err != nil {
			return err
		}
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err
	}
	_, mode, _ := strings.Cut(string(status), "Seccomp:\t")
	fmt.Printf("mode %.1s", mode)
	for _, c := range []struct {
		nr, arg uintptr
	}{
		{unix.SYS_PERSONALITY, 0}, {unix.SYS_PERSONALITY, oddPersonality}, {unix.SYS_FUTEX_WAITV, 0}, {5000, 0},
		{unix.SYS_UNSHARE, unix.CLONE_NEWUSER}, {unix.SYS_CLONE, unix.CLONE_NEWUSER}, {unix.SYS_CLONE3, 0}, {unix.SYS_GETPGID, 0}, {unix.SYS_GETSID, 0},
	} {
		nr, _, errno := syscall.RawSyscall(c.nr, c.arg, 0, 0)
		if c.nr == unix.SYS_CLONE && errno == 0 && nr == 0 {
			unix.Exit(0) // it is a child now
		}
		fmt.Printf(" %d", errno)
		if c.nr == unix.SYS_GETSID && nr == 0 {
			fmt.Print(" skipped")
		}
	}
	fmt.Println()
	return nil
}

// filterOneself has the thread refuse a call, and answer another one that the sandbox refuses.
func filterOneself() error {
	program, err := sandbox.CompileSeccomp(answering(
		answer("getpgid", specs.ActErrno, errnoOwn), answer("futex_waitv", specs.ActErrno, errnoOwn), answer("personality", specs.ActErrno, errnoOwn)))
	if err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0)
}

func answering(lines ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: lines}
}

func answer(name string, action specs.LinuxSeccompAction, errno uint, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: action, ErrnoRet: &errno, Args: args}
}

// custom is a profile with each kind of answer that the sentry's table can give.
func custom() *specs.LinuxSeccomp {
	return answering(
		answer("getpgid", specs.ActErrno, errnoCall), answer("getsid", specs.ActErrno, 0),
		answer("personality", specs.ActErrno, errnoArgument, specs.LinuxSeccompArg{Index: 0, Value: oddPersonality, Op: specs.OpEqualTo}),
		answer("futex_waitv", specs.ActErrno, errnoNoEntry))
}

// newCaller is a bench whose image has the calling program.
func newCaller(t *testing.T) *sandboxtest.Bench {
	t.Helper()
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	if err := copyTo("/proc/self/exe", filepath.Join(b.Lower, "caller")); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPayloadFilterAnswersSystemCalls(t *testing.T) {
	b := newCaller(t)
	kill := custom()
	kill.Syscalls = append(kill.Syscalls, answer("chroot", specs.ActKill, 0))
	docker, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		how     string
		profile *specs.LinuxSeccomp
		want    string
	}{
		// In the order of call's list.
		"custom":               {"direct", custom(), "mode 0 0 78 79 38 22 0 22 77 0 skipped"},
		"child":                {"child", custom(), "mode 0 0 78 79 38 22 0 22 77 0 skipped"},
		"a filter of its own":  {"filter", custom(), "mode 2 80 80 80 38 22 0 22 80 0 skipped"},
		"an answer that kills": {"direct", kill, "mode 2 0 78 79 38 22 0 22 77 0 skipped"},
		"nothing is refused":   {"direct", answering(), "mode 0 0 22 38 38 22 0 22 0 0"},
		"Docker's":             {"direct", docker.Linux.Seccomp, "mode 0 0 1 38 38 1 1 38 0 0"},
		"none":                 {"child", nil, "mode 0 0 22 38 38 22 0 22 0 0"},
	} {
		r := b.RequestFor(sandbox.SpecOptions{Args: []string{"/caller"}, Env: []string{callerEnv + "=" + c.how}})
		r.Spec.Linux.Seccomp = c.profile
		if out, exit := b.Run(r); out != c.want+"\n" || exit.Code != 0 {
			t.Errorf("%s: %q, %+v, want %q", name, out, exit, c.want)
		}
	}
	b.Link("bin/chroot", "busybox")
	r := b.Request("exec chroot / /bin/true")
	r.Spec.Linux.Seccomp = kill
	if out, exit := b.Run(r); exit.Signal != unix.SIGSYS {
		t.Errorf("the answer that kills: %q, %+v", out, exit)
	}
}

// A program that den adds without the filter, and what it starts, may do what the others may not.
func TestUnfilteredProgramAndItsChildrenAreNotRefused(t *testing.T) {
	b := newCaller(t)
	r := b.Request("read x")
	r.Spec.Linux.Seccomp = custom()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Stdin = in
	s, err := b.Exec.Start(t.Context(), r)
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		how        string
		privileged bool
		want       string
	}{
		{"direct", true, "mode 0 0 22 38 38 22 0 22 0 0"},
		{"child", true, "mode 0 0 22 38 38 22 0 22 0 0"},
		{"direct", false, "mode 0 0 78 79 38 22 0 22 77 0 skipped"},
		{"child", false, "mode 0 0 78 79 38 22 0 22 77 0 skipped"},
	} {
		spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"/caller"}, Env: []string{callerEnv + "=" + c.how}})
		if err != nil {
			t.Fatal(err)
		}
		var text sandboxtest.Buffer
		x, err := s.(sandbox.Execer).Exec(t.Context(), &sandbox.ExecRequest{ID: "exec", Process: spec.Process, Privileged: c.privileged, Stdout: &text, Stderr: &text})
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := x.Wait(t.Context()); err != nil || exit.Code != 0 || text.String() != c.want+"\n" {
			t.Errorf("%s, privileged %v: %q, %+v, %v, want %q", c.how, c.privileged, text.String(), exit, err, c.want)
		}
	}
	w.Close()
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 1 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// Process 1 reaps under a profile that refuses the call by which it does.
func TestPayloadFilterIsNotForInit(t *testing.T) {
	b := sandboxtest.New(t, newExecutor(t, sentry.Options{}))
	r := b.Request("(true & echo $! >/tmp/orphan); n=0; while [ -e /proc/$(cat /tmp/orphan) ] && [ $n -lt 500 ]; do sleep 0.01; n=$((n+1)); done; [ $n -lt 500 ] && echo reaped")
	r.Init = true
	r.Spec.Linux.Seccomp = answering(answer("wait4", specs.ActErrno, errnoCall, specs.LinuxSeccompArg{Index: 2, Value: unix.WALL, ValueTwo: unix.WALL, Op: specs.OpMaskedEqual}))
	if out, exit := b.Run(r); out != "reaped\n" || exit.Code != 0 {
		t.Errorf("%q, %+v", out, exit)
	}
}
