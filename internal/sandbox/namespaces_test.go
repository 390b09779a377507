package sandbox_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sys"
)

// TestMain enters a user namespace where that is the way to run sandboxes, so
// that the same tests run as root and as a plain user.
func TestMain(m *testing.M) {
	if sandbox.Reap() {
		return
	}
	if dir := os.Getenv("DEN_TEST_JOIN"); dir != "" && !sandbox.Entered() {
		fmt.Fprintln(os.Stderr, "join user namespace:", sandbox.JoinUserns([]string{"/no/such", dir}, os.Args, os.Environ()))
	}
	f := probe.Gather(context.Background(), os.TempDir())
	if c, err := sandbox.Choose(f, os.Getenv("DEN_TEST_ISOLATION")); err == nil && c.Enter {
		fmt.Fprintln(os.Stderr, "enter user namespace:", sandbox.EnterUserns(f, os.Args, os.Environ()))
	}
	os.Exit(m.Run())
}

// executor is the best that this machine allows; without any the test is skipped.
func executor(t testing.TB, o sandbox.Options) sandbox.Executor {
	t.Helper()
	var err error
	if o.Choice, err = sandbox.Choose(probe.Gather(t.Context(), t.TempDir()), os.Getenv("DEN_TEST_ISOLATION")); err != nil {
		t.Skip("needs namespaces: ", err)
	}
	if os.Getenv("DEN_TEST_SHARE_PIDS") != "" {
		o.Choice.SharePids = true
	}
	if o.Choice.Enter {
		t.Skip("needs to be inside a user namespace, which could not be entered")
	}
	e, err := sandbox.NewNamespaces(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestContract(t *testing.T) {
	sandboxtest.Contract(t, executor(t, sandbox.Options{}))
}

// TestContractWithOverlaysOfOldKernels mounts as kernels before 6.5 need it.
func TestContractWithOverlaysOfOldKernels(t *testing.T) {
	sandboxtest.Contract(t, executor(t, sandbox.Options{OldOverlay: true}))
}

// TestContractWithSharedPids is how sandboxes run below a masked /proc.
func TestContractWithSharedPids(t *testing.T) {
	t.Setenv("DEN_TEST_SHARE_PIDS", "1")
	sandboxtest.Contract(t, executor(t, sandbox.Options{}))
}

// TestContractWithoutPtrace is for root whose capabilities lack CAP_SYS_PTRACE:
// what the kernel shows of a process that is not dumpable must not be needed.
func TestContractWithoutPtrace(t *testing.T) {
	executor(t, sandbox.Options{})
	if st, err := sys.SelfStatus(); err != nil || !st.Effective.Has(unix.CAP_SETPCAP) {
		t.Skip("needs CAP_SETPCAP to drop CAP_SYS_PTRACE: ", err)
	}
	p := sys.NewPlan()
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_CAPBSET_DROP), sys.Int(unix.CAP_SYS_PTRACE))
	contractAfter(t, p)
}

// contractAfter runs the contract in a process that goes p's way first.
func contractAfter(t *testing.T, p *sys.Plan) {
	t.Helper()
	p.Do(unix.SYS_EXECVE, p.Str(os.Args[0]), p.Strs([]string{os.Args[0], "-test.run=^TestContract$"}), p.Strs(os.Environ()))
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	pid, err := p.Start("test", []*os.File{nil, out, out})
	if err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		text, _ := os.ReadFile(out.Name())
		t.Errorf("%v, exit status %d:\n%s", err, status.ExitStatus(), text)
	}
}

// outerCalls are those that den makes and Docker's profile for outer containers
// forbids. docs/using.md lists them, too.
var outerCalls = []string{"clone", "fsconfig", "fsmount", "fsopen", "mount", "mount_setattr", "move_mount", "open_tree",
	"pivot_root", "sethostname", "setns", "umount2", "unshare"}

// TestContractBelowDockersProfile is for outer containers that keep Docker's
// filter and allow what den needs.
func TestContractBelowDockersProfile(t *testing.T) {
	executor(t, sandbox.Options{})
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	profile := *spec.Linux.Seccomp
	profile.Syscalls = append(slices.Clone(profile.Syscalls), specs.LinuxSyscall{Names: outerCalls, Action: specs.ActAllow})
	filter, err := sandbox.CompileSeccomp(&profile)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, i := range filter { // struct sock_filter
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	p := sys.NewPlan()
	p.Do(unix.SYS_SECCOMP, sys.Int(unix.SECCOMP_SET_MODE_FILTER), sys.Int(0), p.Words(sys.Int(len(filter)), p.Bytes(b)))
	contractAfter(t, p)
	text, err := os.ReadFile("../../docs/using.md")
	if errors.Is(err, os.ErrNotExist) {
		t.Log("needs the whole source tree to compare with docs/using.md")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if names, err := json.Marshal(outerCalls); err != nil || !bytes.Contains(text, names) {
		t.Errorf("docs/using.md does not hold %s", names)
	}
}

func BenchmarkTrue(b *testing.B) {
	bench := sandboxtest.New(b, executor(b, sandbox.Options{}))
	r := bench.RequestFor(sandbox.SpecOptions{Args: []string{"/bin/true"}})
	for b.Loop() {
		s, err := bench.Exec.Start(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		bench.Renew()
		b.StartTimer()
	}
}

func TestCgroupOfTheSpecificationIsBelowDensOwnAndGoes(t *testing.T) {
	b := sandboxtest.New(t, executor(t, sandbox.Options{}))
	r := b.Request("cat /proc/self/cgroup")
	r.Spec.Linux.CgroupsPath = "/../den-test-team/one"
	r.Spec.Linux.Namespaces = slices.DeleteFunc(r.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	var warnings []string
	r.Warn = func(s string) { warnings = append(warnings, s) }
	out, _ := b.Run(r)
	if len(warnings) > 0 {
		if !strings.HasPrefix(warnings[0], "the cgroup /../den-test-team/one is not in force: ") {
			t.Error(warnings)
		}
		t.Skip("needs a cgroup: ", warnings)
	}
	if !strings.Contains(out, "/den-test-team/one\n") {
		t.Errorf("it runs in %q", out)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/den-test-team"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}
