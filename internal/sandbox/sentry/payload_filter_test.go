package sentry

import (
	"testing"

	xbpf "golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"

	"den/internal/sandbox"
)

// dockersProfile is the program of Docker's default profile.
func dockersProfile(t *testing.T) []xbpf.RawInstruction {
	t.Helper()
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	program, err := sandbox.CompileSeccomp(spec.Linux.Seccomp)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func TestPayloadFilterIsMadeOnceAndSaysTheSameWhenShort(t *testing.T) {
	program := dockersProfile(t)
	var f payloadFilters
	made, err := f.of(program)
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.of(program)
	if err != nil || again != made || len(f.made) != 1 {
		t.Errorf("the same profile was looked at twice: %v", err)
	}
	before, err := made.compile(false)
	if err != nil {
		t.Fatal(err)
	}
	after, err := made.compile(true)
	if err != nil || before.Length() != len(program) || after.Length() >= before.Length() {
		t.Fatalf("%d instructions became %d and %d: %v", len(program), before.Length(), after.Length(), err)
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
				if arch != 0 && made.allows(uintptr(nr)) && linux.BPFAction(got) != linux.SECCOMP_RET_ALLOW {
					t.Errorf("system call %d is always allowed, but with argument %d: %#x", nr, arg, got)
				}
			}
		}
	}
}

func TestPayloadFilterKnowsWhatItAlwaysAllows(t *testing.T) {
	program := dockersProfile(t)
	var f payloadFilters
	made, err := f.of(program)
	if err != nil {
		t.Fatal(err)
	}
	for nr, want := range map[uintptr]bool{
		unix.SYS_OPENAT: true, unix.SYS_EXECVE: true, unix.SYS_CLONE: false, unix.SYS_PERSONALITY: false, unix.SYS_UNSHARE: false, unix.SYS_CLONE3: false,
		400: false, 64*callWords - 1: false, 64 * callWords: false, ^uintptr(0): false,
	} {
		if got := made.allows(nr); got != want {
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
