package sandbox

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// machine runs a compiled filter. The virtual machine reads words in network
// order, which is how judge lays them out.
type machine struct{ vm *bpf.VM }

func newMachine(t testing.TB, p *specs.LinuxSeccomp) (machine, int) {
	t.Helper()
	raw, err := CompileSeccomp(p)
	if err != nil {
		t.Fatal(err)
	}
	ins, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program has instructions that cannot be read back")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}, len(ins)
}

func (m machine) judge(t testing.TB, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, nr)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	got, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func dockerProfile(t testing.TB, o SpecOptions) *specs.LinuxSeccomp {
	t.Helper()
	if _, ok := sys.NativeArch(); !ok {
		t.Skip("needs a system call table for this processor")
	}
	o.Args = []string{"true"}
	spec, err := DefaultSpec(o)
	if err != nil {
		t.Fatal(err)
	}
	return spec.Linux.Seccomp
}

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	eperm  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	enosys = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

func TestDockersProfileAnswersAsDocker(t *testing.T) {
	p := dockerProfile(t, SpecOptions{})
	m, n := newMachine(t, p)
	t.Logf("%d instructions", n)
	native, _ := sys.NativeArch()
	arch := auditArch[native]
	nr := func(name string) uint32 {
		v, ok := sys.CallNumber(native, name)
		if !ok {
			t.Fatalf("no %s here", name)
		}
		return v
	}
	for _, c := range []struct {
		name string
		args []uint64
		want uint32
	}{
		{"read", nil, allow},
		{"openat2", nil, allow},
		{"mount", nil, eperm},
		{"bpf", nil, eperm},
		{"io_uring_setup", nil, eperm},
		{"clone3", nil, enosys},
		{"clone", []uint64{uint64(unix.SIGCHLD)}, allow},
		{"clone", []uint64{unix.CLONE_NEWUSER}, eperm},
		{"clone", []uint64{unix.CLONE_NEWNS | uint64(unix.SIGCHLD)}, eperm},
		{"socket", []uint64{unix.AF_INET}, allow},
		{"socket", []uint64{unix.AF_ALG}, eperm},
		{"socket", []uint64{unix.AF_VSOCK}, eperm},
		{"socket", []uint64{unix.AF_QIPCRTR}, allow},
		{"personality", []uint64{0}, allow},
		{"personality", []uint64{8}, allow},
		{"personality", []uint64{0xffffffff}, allow},
		{"personality", []uint64{0x40000 /* ADDR_NO_RANDOMIZE */}, eperm},
		{"personality", []uint64{1<<32 | 8}, eperm},
	} {
		if got := m.judge(t, arch, nr(c.name), c.args...); got != c.want {
			t.Errorf("%s(%#x): %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	if got := m.judge(t, arch, sys.LastCall(native)+1); got != enosys {
		t.Errorf("a call from the future: %#x", got)
	}
	if got := m.judge(t, arch, 0x40000000); got != enosys {
		t.Errorf("an x32 call: %#x", got)
	}
	if got := m.judge(t, 0x12345, nr("read")); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("a foreign processor: %#x", got)
	}

	m, _ = newMachine(t, dockerProfile(t, SpecOptions{CapAdd: []string{"SYS_ADMIN"}}))
	for _, name := range []string{"mount", "clone3", "bpf"} {
		if got := m.judge(t, arch, nr(name)); got != allow {
			t.Errorf("%s with SYS_ADMIN: %#x", name, got)
		}
	}
}

// TestCompiledProfileAgreesWithTheRules compares every call on every table with a
// plain reading of the profile, for arguments around the values that it names.
func TestCompiledProfileAgreesWithTheRules(t *testing.T) {
	p := dockerProfile(t, SpecOptions{})
	m, _ := newMachine(t, p)
	arches, err := seccompArches(p.Architectures)
	if err != nil || len(arches) != 2 {
		t.Fatalf("tables: %v, %v", arches, err)
	}
	for _, a := range arches {
		names := map[uint32]string{}
		for _, line := range p.Syscalls {
			for _, n := range line.Names {
				if nr, ok := sys.CallNumber(a, n); ok {
					names[nr] = n
				}
			}
		}
		for nr := uint32(0); nr <= sys.LastCall(a)+3; nr++ {
			for range 20 {
				args := [6]uint64{}
				for i := range args {
					args[i] = interesting[rand.IntN(len(interesting))] + uint64(rand.IntN(3)) - 1
				}
				want := plainly(p, names[nr], args)
				if nr > sys.LastCall(a) {
					want = enosys
				}
				if got := m.judge(t, auditArch[a], nr, args[:]...); got != want {
					t.Fatalf("table %d, call %d %s(%#x): %#x, want %#x", a, nr, names[nr], args, got, want)
				}
			}
		}
	}
}

var interesting = []uint64{0, 8, 38, 39, 40, 131072, 131080, 0xffffffff, 1 << 32, 2114060288, 17, 1<<63 + 5}

// plainly is what the profile says about a call, read line by line.
func plainly(p *specs.LinuxSeccomp, name string, args [6]uint64) uint32 {
	for _, line := range p.Syscalls {
		for _, n := range line.Names {
			if n != name {
				continue
			}
			match := true
			for _, a := range line.Args {
				match = match && holds(a, args[a.Index])
			}
			if match {
				v, _ := seccompAction(line.Action, line.ErrnoRet)
				return v
			}
		}
	}
	v, _ := seccompAction(p.DefaultAction, p.DefaultErrnoRet)
	return v
}

func holds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo
	default:
		return v == a.Value
	}
}

func TestEveryComparisonOf64Bits(t *testing.T) {
	ops := []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
	values := []uint64{0, 1, 0xfffffffe, 0xffffffff, 1 << 32, 1<<32 + 1, 2 << 32, 1<<64 - 1}
	native, ok := sys.NativeArch()
	if !ok {
		t.Skip("needs a system call table for this processor")
	}
	for _, op := range ops {
		for _, v := range values {
			arg := specs.LinuxSeccompArg{Index: 3, Value: v, ValueTwo: v & 0xf0000000f, Op: op}
			p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg, {Index: 0, Value: 7, Op: specs.OpEqualTo}}},
			}}
			m, _ := newMachine(t, p)
			nr, _ := sys.CallNumber(native, "read")
			for _, x := range values {
				for _, first := range []uint64{7, 8} {
					want := eperm
					if holds(arg, x) && first == 7 {
						want = allow
					}
					if got := m.judge(t, auditArch[native], nr, first, 0, 0, x); got != want {
						t.Errorf("%#x %s %#x: %#x, want %#x", x, op, v, got, want)
					}
				}
			}
		}
	}
}

func BenchmarkCompileSeccomp(b *testing.B) {
	p := dockerProfile(b, SpecOptions{})
	for b.Loop() {
		if _, err := CompileSeccomp(p); err != nil {
			b.Fatal(err)
		}
	}
}

// Every client of the API can bring profiles of its own.
func TestFewCompiledProfilesAreKept(t *testing.T) {
	n := &Namespaces{filters: map[[sha256.Size]byte][]byte{}}
	for i := range uint(maxFilters + 10) {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &i}}}
		for range 2 {
			if f, err := n.filter(p); err != nil || len(f) == 0 {
				t.Fatalf("filter of %d bytes, %v", len(f), err)
			}
		}
	}
	if len(n.filters) > maxFilters {
		t.Errorf("%d are kept", len(n.filters))
	}
}
