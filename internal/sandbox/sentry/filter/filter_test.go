package filter

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// printFilters has the test binary print its filters and end.
const printFilters = "DEN_TEST_PRINT_FILTERS"

// compileAll compiles all filters that there are.
func compileAll(t *testing.T) (codes []string) {
	t.Helper()
	for _, name := range all() {
		code, err := compile(name)
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, hex.EncodeToString(code))
	}
	return codes
}

var update = flag.Bool("update", false, "write the filters of this architecture anew")

// TestProgramsAreThoseOfTheRules compares what is in the binary with gVisor's and den's rules.
func TestProgramsAreThoseOfTheRules(t *testing.T) {
	for _, name := range all() {
		code, err := compile(name)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(file(name), code, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if is, err := programs.ReadFile(file(name)); err != nil || !bytes.Equal(is, code) {
			t.Errorf("%s is not what the rules say (%v): run go generate ./internal/sandbox/sentry/filter, and commit what changes", file(name), err)
		}
	}
	if *update {
		if err := os.WriteFile(madeOfFile(runtime.GOARCH), []byte(madeOf(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProgramsAreMadeOfTheRulesThereAre holds for the architecture that this test does not run on, too.
func TestProgramsAreMadeOfTheRulesThereAre(t *testing.T) {
	want := madeOf(t)
	for _, arch := range []string{"amd64", "arm64"} {
		if is, err := os.ReadFile(madeOfFile(arch)); err != nil || string(is) != want {
			t.Errorf("the filters of %s are made of %q (%v), but there is %q: run go generate ./internal/sandbox/sentry/filter, which needs qemu-user-static for the other architecture, and commit what changes", arch, is, err, want)
		}
	}
}

func madeOfFile(arch string) string { return "programs/" + arch + "/made-of" }

// madeOf is what determines the filters of an architecture: gVisor's rules and den's compiler.
func madeOf(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("../../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	compiler, err := os.ReadFile("rules_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if strings.HasPrefix(strings.TrimSpace(line), "gvisor.dev/gvisor ") {
			return fmt.Sprintf("%s\nrules_test.go %x\ncontrol descriptor %d\n", strings.TrimSpace(line), sha256.Sum256(compiler), ControlFD)
		}
	}
	t.Fatal("go.mod does not name gVisor's version")
	return ""
}

// TestCompiledFilterIsThatOfEveryProcess shows that there is a blank wherever a filter depends on the
// process that it is compiled in.
func TestCompiledFilterIsThatOfEveryProcess(t *testing.T) {
	other := os.Getenv(printFilters) != ""
	if other { // with another priority, too
		runtime.LockOSThread()
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
			t.Fatal(err)
		}
	}
	all := compileAll(t)
	if other {
		_, _ = os.Stdout.WriteString("filters " + strings.Join(all, " ") + "\n")
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), printFilters+"=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "filters "); ok {
			if d := cmp.Diff(strings.Fields(rest), all); d != "" {
				t.Errorf("another process compiles other filters (-it +this):\n%.2000s", d)
			}
			return
		}
	}
	t.Errorf("the other process printed %.200q", out)
}

// load is what decides on calls as the kernel does with the filter of that name.
func load(t *testing.T, name string, priority uint64) (allowed func(nr int, args ...uint64) bool) {
	t.Helper()
	instructions, err := program(name, priority)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range instructions {
		if i.K >= blankPid && i.K <= blankPriorityHigh {
			t.Errorf("%s: a blank is left: %s", name, i.String())
		}
	}
	p, err := bpf.Compile(instructions, false)
	if err != nil {
		t.Fatal(err)
	}
	return func(nr int, args ...uint64) bool {
		d := linux.SeccompData{Nr: int32(nr), Arch: seccomp.LINUX_AUDIT_ARCH}
		copy(d.Args[:], args)
		action, err := bpf.Exec[bpf.NativeEndian](p, seccomp.DataAsBPFInput(&d, make([]byte, d.SizeBytes())))
		if err != nil {
			t.Fatal(err)
		}
		return linux.BPFAction(action) == linux.SECCOMP_RET_ALLOW
	}
}

// TestFilledInFilterBindsToItsProcess tries the rules with blanks.
func TestFilledInFilterBindsToItsProcess(t *testing.T) {
	const kill = uint64(unix.SIGKILL)
	pid := uint64(os.Getpid())
	for name, info := range infos() {
		priority := info.Variables().GetUint64(PriorityVariable)
		allowed := load(t, name+"-host", priority)
		got := []bool{
			allowed(unix.SYS_RT_TGSIGQUEUEINFO, pid, 1, kill), allowed(unix.SYS_RT_TGSIGQUEUEINFO, pid+1, 1, kill),
			allowed(unix.SYS_RT_TGSIGQUEUEINFO, blankPid, 1, kill), allowed(unix.SYS_FUTEX, 0, linux.FUTEX_WAKE|linux.FUTEX_PRIVATE_FLAG),
			allowed(unix.SYS_PTRACE, linux.PTRACE_ATTACH), allowed(unix.SYS_EXECVE), allowed(unix.SYS_OPENAT),
		}
		if want := []bool{true, false, false, true, true, false, false}; !slices.Equal(got, want) {
			t.Errorf("%s: allowed %v, want %v", name, got, want)
		}
		if name == "systrap" {
			if !allowed(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 7, priority) || allowed(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 7, priority+1) {
				t.Errorf("%s: the priority %d of its threads is not the one that is allowed", name, priority)
			}
		}
	}
	allowed := load(t, Gofer, 0)
	got := []bool{allowed(unix.SYS_TGKILL, pid), allowed(unix.SYS_TGKILL, pid+1), allowed(unix.SYS_TGKILL, blankPid), allowed(unix.SYS_GETXATTR), allowed(unix.SYS_EXECVE)}
	if want := []bool{true, false, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("gofer: allowed %v, want %v", got, want)
	}
}
