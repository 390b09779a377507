package sentry

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/sentry/platform/ptrace"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
	"gvisor.dev/gvisor/runsc/boot/filter/config"

	"den/internal/sandbox"
)

// compileFilter makes a program with blanks.
func compileFilter(platformName, network string) ([]byte, error) {
	var info platform.SeccompInfo
	switch platformName {
	case platformSystrap:
		info = (*systrap.Systrap)(nil).SeccompInfo()
	case platformPtrace:
		info = (*ptrace.PTrace)(nil).SeccompInfo()
	default:
		return nil, fmt.Errorf("filter of platform %.40q: unknown", platformName)
	}
	o := config.Options{Platform: info, HostNetwork: network == sandbox.NetworkHost, ControllerFD: fdControl}
	rules, denied := config.Rules(o)
	pid := seccomp.EqualTo(os.Getpid())
	for _, nr := range []uintptr{unix.SYS_TGKILL, unix.SYS_RT_TGSIGQUEUEINFO} {
		blankOut(rules, nr, 0, pid, blankPid)
	}
	priority := info.Variables().GetUint64(priorityVariable)
	blankOut(rules, unix.SYS_SETPRIORITY, 2, seccomp.EqualTo(priority), blankPriorityHigh<<32|blankPriorityLow)
	program := seccomp.Program{
		RuleSets: []seccomp.RuleSet{{Rules: denied}, {Rules: rules, Action: seccomp.Allow}},
		Options:  config.SeccompOptions(o),
	}
	program.Options.DefaultAction = seccomp.KillProcess // else it depends on the kernel that compiles: Linux 4.14 knows it
	instructions, _, err := program.Build()
	if err != nil {
		return nil, fmt.Errorf("compile the sentry's filter: %w", err)
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
