package sentry

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
	xbpf "golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/sentry/platform/ptrace"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"

	"den/internal/sandbox"
)

// printFilters has the test binary print its filters and end.
const printFilters = "DEN_TEST_PRINT_FILTERS"

// networks has one of each kind that filters differ for.
func networks() []string { return []string{sandbox.NetworkHost, sandbox.NetworkNone} }

// compileAll compiles all filters that there are.
func compileAll(t *testing.T) (all []string) {
	t.Helper()
	for _, p := range []string{platformSystrap, platformPtrace} {
		for _, n := range networks() {
			code, err := compileFilter(p, n)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, hex.EncodeToString(code))
		}
	}
	return all
}

var update = flag.Bool("update", false, "write the filters of this architecture anew")

// TestFiltersAreThoseOfTheRules compares what is in the binary with gVisor's and den's rules.
func TestFiltersAreThoseOfTheRules(t *testing.T) {
	for _, p := range []string{platformSystrap, platformPtrace} {
		for _, n := range networks() {
			code, err := compileFilter(p, n)
			if err != nil {
				t.Fatal(err)
			}
			name := filterFile(p, n)
			if *update {
				if err := os.WriteFile(name, code, 0o644); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if is, err := compiledFilters.ReadFile(name); err != nil || !bytes.Equal(is, code) {
				t.Errorf("%s is not what the rules say (%v): run go generate ./internal/sandbox/sentry, and commit what changes", name, err)
			}
		}
	}
	if *update {
		if err := os.WriteFile(madeOfFile(runtime.GOARCH), []byte(madeOf(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFiltersAreMadeOfTheRulesThereAre holds for the architecture that this test does not run on, too.
func TestFiltersAreMadeOfTheRulesThereAre(t *testing.T) {
	want := madeOf(t)
	for _, arch := range []string{"amd64", "arm64"} {
		if is, err := os.ReadFile(madeOfFile(arch)); err != nil || string(is) != want {
			t.Errorf("the filters of %s are made of %q (%v), but there is %q: run go generate ./internal/sandbox/sentry, which needs qemu-user-static for the other architecture, and commit what changes", arch, is, err, want)
		}
	}
}

func madeOfFile(arch string) string { return "filters/" + arch + "/made-of" }

// madeOf is what determines the filters of an architecture: gVisor's rules and den's compiler.
func madeOf(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	compiler, err := os.ReadFile("compile_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if strings.HasPrefix(strings.TrimSpace(line), "gvisor.dev/gvisor ") {
			return fmt.Sprintf("%s\ncompile_test.go %x\ncontrol descriptor %d\n", strings.TrimSpace(line), sha256.Sum256(compiler), fdControl)
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

// TestFilledInFilterBindsToItsProcess tries the rules with blanks.
func TestFilledInFilterBindsToItsProcess(t *testing.T) {
	const kill = uint64(unix.SIGKILL)
	pid := uint64(os.Getpid())
	for name, info := range map[string]platform.SeccompInfo{
		platformSystrap: (*systrap.Systrap)(nil).SeccompInfo(), platformPtrace: (*ptrace.PTrace)(nil).SeccompInfo(),
	} {
		code, err := compiledFilters.ReadFile(filterFile(name, sandbox.NetworkHost))
		if err != nil {
			t.Fatal(err)
		}
		instructions, err := fillIn(code, info)
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
		allowed := func(nr int, args ...uint64) bool {
			d := linux.SeccompData{Nr: int32(nr), Arch: seccomp.LINUX_AUDIT_ARCH}
			copy(d.Args[:], args)
			action, err := bpf.Exec[bpf.NativeEndian](p, seccomp.DataAsBPFInput(&d, make([]byte, d.SizeBytes())))
			if err != nil {
				t.Fatal(err)
			}
			return linux.BPFAction(action) == linux.SECCOMP_RET_ALLOW
		}
		got := []bool{
			allowed(unix.SYS_RT_TGSIGQUEUEINFO, pid, 1, kill), allowed(unix.SYS_RT_TGSIGQUEUEINFO, pid+1, 1, kill),
			allowed(unix.SYS_RT_TGSIGQUEUEINFO, blankPid, 1, kill), allowed(unix.SYS_FUTEX, 0, linux.FUTEX_WAKE|linux.FUTEX_PRIVATE_FLAG),
			allowed(unix.SYS_PTRACE, linux.PTRACE_ATTACH), allowed(unix.SYS_EXECVE), allowed(unix.SYS_OPENAT),
		}
		if want := []bool{true, false, false, true, true, false, false}; !slices.Equal(got, want) {
			t.Errorf("%s: allowed %v, want %v", name, got, want)
		}
		if name == platformSystrap {
			priority := info.Variables().GetUint64(priorityVariable)
			if !allowed(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 7, priority) || allowed(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 7, priority+1) {
				t.Errorf("%s: the priority %d of its threads is not the one that is allowed", name, priority)
			}
		}
	}
}

func TestPayloadFilterIsMadeOnceAndSaysTheSame(t *testing.T) {
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	program, err := sandbox.CompileSeccomp(spec.Linux.Seccomp)
	if err != nil {
		t.Fatal(err)
	}
	var f payloadFilters
	short, err := f.of(program)
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.of(program)
	if err != nil || again != short || len(f.made) != 1 {
		t.Errorf("the same profile was optimized twice: %v", err)
	}
	if len(short.Program) > len(program) {
		t.Errorf("%d instructions became %d", len(program), len(short.Program))
	}
	long := make([]bpf.Instruction, len(program))
	for i, in := range program {
		long[i] = bpf.Instruction{OpCode: in.Op, JumpIfTrue: in.Jt, JumpIfFalse: in.Jf, K: in.K}
	}
	before, err := bpf.Compile(long, false)
	if err != nil {
		t.Fatal(err)
	}
	after, err := bpf.Compile(unpack(short.Program), false)
	if err != nil {
		t.Fatal(err)
	}
	for nr := range int32(500) {
		for _, arch := range []uint32{seccomp.LINUX_AUDIT_ARCH, 0} {
			for _, arg := range []uint64{0, 8, unix.CLONE_NEWUSER, 0xffffffff} {
				d := linux.SeccompData{Nr: nr, Arch: arch, Args: [6]uint64{arg, arg, arg}}
				in := seccomp.DataAsBPFInput(&d, make([]byte, d.SizeBytes()))
				want, werr := bpf.Exec[bpf.NativeEndian](before, in)
				got, gerr := bpf.Exec[bpf.NativeEndian](after, in)
				if want != got || werr != nil || gerr != nil {
					t.Fatalf("system call %d, argument %d: %#x, want %#x (%v, %v)", nr, arg, got, want, gerr, werr)
				}
				if arch != 0 && short.allows(uintptr(nr)) && linux.BPFAction(got) != linux.SECCOMP_RET_ALLOW {
					t.Errorf("system call %d is always allowed, but with argument %d: %#x", nr, arg, got)
				}
			}
		}
	}
}

func TestPayloadFilterKnowsWhatItAlwaysAllows(t *testing.T) {
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	program, err := sandbox.CompileSeccomp(spec.Linux.Seccomp)
	if err != nil {
		t.Fatal(err)
	}
	var f payloadFilters
	short, err := f.of(program)
	if err != nil {
		t.Fatal(err)
	}
	for nr, want := range map[uintptr]bool{
		unix.SYS_OPENAT: true, unix.SYS_EXECVE: true, unix.SYS_CLONE: false, unix.SYS_PERSONALITY: false, unix.SYS_UNSHARE: false, unix.SYS_CLONE3: false,
		400: false, 64*callWords - 1: false, 64 * callWords: false, ^uintptr(0): false,
	} {
		if got := short.allows(nr); got != want {
			t.Errorf("system call %d: always allowed %v, want %v", nr, got, want)
		}
	}
}

func TestPayloadFilterThatIsNoneIsRefused(t *testing.T) {
	var f payloadFilters
	for _, bad := range [][]xbpf.RawInstruction{{}, {{Op: 0x20}}, {{Op: 0xffff}, {Op: 6}}, {{Op: 0x15, Jt: 9}, {Op: 6}}} {
		if _, err := f.of(bad); err == nil || len(f.made) != 0 {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
