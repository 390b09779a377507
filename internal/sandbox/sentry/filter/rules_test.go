package filter

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/sentry/platform/ptrace"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
	sentryrules "gvisor.dev/gvisor/runsc/boot/filter/config"
	goferrules "gvisor.dev/gvisor/runsc/fsgofer/filter/config"
)

// all are the names of the filters.
func all() []string { return []string{SystrapHost, SystrapOwn, PtraceHost, PtraceOwn, Gofer} }

// infos are the platforms that den can choose.
func infos() map[string]platform.SeccompInfo {
	return map[string]platform.SeccompInfo{"systrap": (*systrap.Systrap)(nil).SeccompInfo(), "ptrace": (*ptrace.PTrace)(nil).SeccompInfo()}
}

// compile makes the filter of that name, with blanks.
func compile(name string) ([]byte, error) {
	var rules, denied seccomp.SyscallRules
	var o seccomp.ProgramOptions
	if name == Gofer {
		rules, denied = goferrules.Rules(goferrules.Options{UDSOpenEnabled: true, UDSCreateEnabled: true, ExtraRules: []seccomp.SyscallRules{goferCalls()}})
	} else {
		platformName, network, _ := strings.Cut(name, "-")
		so := sentryrules.Options{Platform: infos()[platformName], HostNetwork: network == "host", ControllerFD: ControlFD}
		rules, denied = sentryrules.Rules(so)
		o = sentryrules.SeccompOptions(so)
		priority := so.Platform.Variables().GetUint64(PriorityVariable)
		blankOut(rules, unix.SYS_SETPRIORITY, 2, seccomp.EqualTo(priority), blankPriorityHigh<<32|blankPriorityLow)
	}
	pid := seccomp.EqualTo(os.Getpid())
	for _, nr := range []uintptr{unix.SYS_TGKILL, unix.SYS_RT_TGSIGQUEUEINFO} {
		blankOut(rules, nr, 0, pid, blankPid)
	}
	o.DefaultAction = seccomp.KillProcess // else it depends on the kernel that compiles: Linux 4.14 knows it
	p := seccomp.Program{RuleSets: []seccomp.RuleSet{{Rules: denied}, {Rules: rules, Action: seccomp.Allow}}, Options: o}
	instructions, _, err := p.Build()
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", name, err)
	}
	return bpf.ToBytecode(instructions), nil
}

// blankOut puts a blank where the rules of a system call compare an argument with was.
func blankOut(rules seccomp.SyscallRules, nr uintptr, arg int, was, blank seccomp.EqualTo) {
	if !rules.Has(nr) {
		return
	}
	var replace func(seccomp.SyscallRule) seccomp.SyscallRule
	replace = func(r seccomp.SyscallRule) seccomp.SyscallRule {
		if p, ok := r.(seccomp.PerArg); ok {
			if p[arg] == seccomp.ValueMatcher(was) {
				p[arg] = blank
			}
			return p
		}
		r.Recurse(replace)
		return r
	}
	r := replace(rules.Get(nr))
	rules.Remove(nr)
	rules.Set(nr, r)
}

// goferCalls are the system calls of den's gofer beyond those of gVisor's own, whose filter allows its.
func goferCalls() seccomp.SyscallRules {
	rules := map[uintptr]seccomp.SyscallRule{}
	for _, nr := range []uintptr{
		unix.SYS_GETXATTR, unix.SYS_SETXATTR, unix.SYS_LISTXATTR, unix.SYS_REMOVEXATTR, // by /proc/self/fd
		unix.SYS_FGETXATTR, unix.SYS_FSETXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_GETXATTRAT,
		unix.SYS_STATX, unix.SYS_FSTAT, unix.SYS_FSTATFS, unix.SYS_GETDENTS64, unix.SYS_READLINKAT,
		unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2,
		unix.SYS_UTIMENSAT, unix.SYS_TRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FLOCK,
		unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT,
		unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_CONNECT,
	} {
		rules[nr] = seccomp.MatchAll{}
	}
	rules[unix.SYS_FCNTL] = seccomp.PerArg{seccomp.AnyValue{}, seccomp.EqualTo(unix.F_DUPFD_CLOEXEC)}
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	rules[unix.SYS_ACCEPT4] = seccomp.PerArg{seccomp.AnyValue{}, seccomp.AnyValue{}, seccomp.AnyValue{}, seccomp.EqualTo(flags)}
	var sockets seccomp.Or
	for _, kind := range []uintptr{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		sockets = append(sockets, seccomp.PerArg{seccomp.EqualTo(unix.AF_UNIX), seccomp.EqualTo(kind | flags), seccomp.EqualTo(0)})
	}
	rules[unix.SYS_SOCKET] = sockets
	return seccomp.MakeSyscallRules(rules)
}
