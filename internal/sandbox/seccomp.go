package sandbox

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// CompileSeccomp turns a profile into the program that seccomp(2) loads: for each
// processor type a binary search over the ranges of system call numbers that
// have the same answer.
//
// Differences from libseccomp, on purpose: numbers above those that den knows
// answer ENOSYS and not the default action, as runc does by patching, so that a
// C library falls back; x32 calls count as such numbers.
func CompileSeccomp(p *specs.LinuxSeccomp) ([]bpf.RawInstruction, error) {
	def, err := seccompAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	prog := block{bpf.LoadAbsolute{Off: 4, Size: 4}}
	arches, err := seccompArches(p.Architectures)
	if err != nil {
		return nil, err
	}
	for _, a := range arches {
		table, err := seccompTable(p, a, def)
		if err != nil {
			return nil, err
		}
		tree := append(block{bpf.LoadAbsolute{Off: 0, Size: 4}}, search(table)...)
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch[a], SkipFalse: 1},
			bpf.Jump{Skip: 1}, bpf.Jump{Skip: uint32(len(tree))})
		prog = append(prog, tree...)
	}
	prog = append(prog, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp profile: %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return raw, nil
}

var auditArch = [...]uint32{
	sys.AMD64: unix.AUDIT_ARCH_X86_64, sys.I386: unix.AUDIT_ARCH_I386,
	sys.ARM64: unix.AUDIT_ARCH_AARCH64, sys.ARM: unix.AUDIT_ARCH_ARM,
}

// seccompArches are the system call tables of the profile; without any, the native one.
func seccompArches(names []specs.Arch) ([]sys.Arch, error) {
	native, ok := sys.NativeArch()
	if !ok {
		return nil, errors.New("seccomp profile: no system call table for this processor")
	}
	arches := []sys.Arch{native}
	for _, n := range names {
		var a sys.Arch
		switch n {
		case specs.ArchX86_64:
			a = sys.AMD64
		case specs.ArchX86:
			a = sys.I386
		case specs.ArchAARCH64:
			a = sys.ARM64
		case specs.ArchARM:
			a = sys.ARM
		default: // another processor's, or x32: its calls cannot occur or are refused
			continue
		}
		if !slices.Contains(arches, a) {
			arches = append(arches, a)
		}
	}
	return arches, nil
}

// A rule is one line of the profile for one system call.
type rule struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// A span is the answer from number first on, up to the next span.
type span struct {
	first uint32
	rules []rule // tried in order; the last has no args
}

// seccompTable lists the answers of the profile for every number on a.
func seccompTable(p *specs.LinuxSeccomp, a sys.Arch, def uint32) ([]span, error) {
	rules := map[uint32][]rule{}
	for _, line := range p.Syscalls {
		action, err := seccompAction(line.Action, line.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range line.Names {
			nr, ok := sys.CallNumber(a, name)
			if !ok {
				continue // of another processor, or newer than the table: refused below
			}
			for _, args := range alternatives(line.Args) {
				rules[nr] = append(rules[nr], rule{args, action})
			}
		}
	}
	fallback := []rule{{action: def}}
	numbers := make([]uint32, 0, len(rules))
	for nr := range rules {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)
	var spans []span
	add := func(first uint32, r []rule) {
		if n := len(spans); n > 0 && spans[n-1].first == first {
			spans = spans[:n-1]
		}
		if n := len(spans); n > 0 && sameAnswer(spans[n-1].rules, r) {
			return
		}
		spans = append(spans, span{first, r})
	}
	add(0, fallback)
	last := sys.LastCall(a)
	unknown := []rule{{action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}}
	ended := false
	for _, nr := range numbers {
		if nr > last && !ended {
			add(last+1, unknown)
			ended = true
		}
		add(nr, untilUnconditional(append(rules[nr], fallback...)))
		if nr > last {
			add(nr+1, unknown)
		} else {
			add(nr+1, fallback)
		}
	}
	if !ended {
		add(last+1, unknown)
	}
	return spans, nil
}

// alternatives splits conditions: several on one argument are alternatives, as
// libseccomp's users expect (runc libcontainer/seccomp), on different ones all
// must hold.
func alternatives(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			var each [][]specs.LinuxSeccompArg
			for _, a := range args {
				each = append(each, []specs.LinuxSeccompArg{a})
			}
			return each
		}
		seen[a.Index] = true
	}
	return [][]specs.LinuxSeccompArg{args}
}

// untilUnconditional drops what can never be reached.
func untilUnconditional(rules []rule) []rule {
	i := slices.IndexFunc(rules, func(r rule) bool { return len(r.args) == 0 })
	return rules[:i+1]
}

func sameAnswer(a, b []rule) bool {
	return slices.EqualFunc(a, b, func(a, b rule) bool { return a.action == b.action && slices.Equal(a.args, b.args) })
}

// seccompAction is the kernel's return value for an action.
func seccompAction(a specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errnoRet != nil {
		data = uint32(*errnoRet & 0xffff)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("seccomp profile: action %.40q is not supported", string(a))
}
