package sentry

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/sentry/platform/ptrace"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
	"gvisor.dev/gvisor/runsc/boot/filter/config"

	"den/internal/sandbox"
)

// The sentry's own filter of system calls bounds what a payload can reach that has taken over the
// sentry. To compile it costs more than all else in the start of a sentry, so den does
// it once and gives every sentry the program, with blanks for what differs between them.

// Blanks, in the place of the 32-bit words that are compared. No rule has such values.
const (
	blankPid          = 0x5eed1d01
	blankPriorityLow  = 0x5eed1d02
	blankPriorityHigh = 0x5eed1d03
)

// priorityVariable is how gVisor's platform calls the priority that it gives to its threads.
const priorityVariable = "systrap_sysmsg_thread_priority"

// filters are the programs of an executor, one for each kind of network, compiled when
// the first sentry of that kind starts.
type filters struct {
	platform string
	host     compiled
	own      compiled

	mu       sync.Mutex
	payloads map[string]*payloadFilter // of payloads, by what they were made of
}

type compiled struct {
	once sync.Once
	code []byte
	err  error
	runs int // how often it was compiled
}

// of is the program for sentries with a network, in the kernel's own form.
func (f *filters) of(network string) ([]byte, error) {
	c := &f.own
	if network == sandbox.NetworkHost {
		c = &f.host
	}
	c.once.Do(func() {
		c.runs++
		c.code, c.err = compileFilter(f.platform, network == sandbox.NetworkHost)
	})
	return c.code, c.err
}

// compileFilter makes a program with blanks.
func compileFilter(platformName string, hostNetwork bool) ([]byte, error) {
	var info platform.SeccompInfo
	switch platformName {
	case platformSystrap:
		info = (*systrap.Systrap)(nil).SeccompInfo()
	case platformPtrace:
		info = (*ptrace.PTrace)(nil).SeccompInfo()
	default:
		return nil, fmt.Errorf("filter of platform %.40q: unknown", platformName)
	}
	o := config.Options{Platform: info, HostNetwork: hostNetwork, ControllerFD: fdControl}
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

// fillIn is the program for this process.
func fillIn(code []byte, info platform.SeccompInfo) ([]bpf.Instruction, error) {
	instructions, err := bpf.ParseBytecode(code)
	if err != nil {
		return nil, err
	}
	priority := info.Variables().GetUint64(priorityVariable)
	for i := range instructions {
		switch k := &instructions[i].K; *k {
		case blankPid:
			*k = uint32(os.Getpid())
		case blankPriorityLow:
			*k = uint32(priority)
		case blankPriorityHigh:
			*k = uint32(priority >> 32)
		}
	}
	return instructions, nil
}

// installFilter loads the filter that den has compiled.
func installFilter(code []byte, info platform.SeccompInfo) error {
	instructions, err := fillIn(code, info)
	if err == nil && len(instructions) == 0 {
		err = unix.EINVAL
	}
	if err == nil {
		err = seccomp.SetFilter(instructions)
	}
	if err != nil {
		return fmt.Errorf("the sentry's filter: %w", err)
	}
	return nil
}
