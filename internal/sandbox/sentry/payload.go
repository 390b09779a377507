package sentry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"

	xbpf "golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
)

// A payloadFilter is a payload's filter of system calls, which the sentry enforces for its own ones. As a filter of its
// processes it would cost 0.3 ms at each clone(2), since the sentry then runs it for all numbers there are. So
// one that only allows and refuses is in the sentry's table of system calls: what it always allows
// goes past it, and the program runs for the rest. No process of the sandbox can take it off there.
type payloadFilter struct {
	Program []byte // of struct sock_filter
	// Allowed has a bit for each system call that is allowed whatever its arguments are, and all may be called that
	// the sentry has. It is empty if the program has other answers than to allow and to refuse: then it is a
	// filter of the processes.
	Allowed []uint64 `json:",omitempty"`
}

// unfiltered ends the name of the container, for the sentry, of processes that a filter in the table is not for.
// Their children inherit it.
const unfiltered = "-unfiltered"

func (b *box) unfilteredID() string { return b.id + unfiltered }

// owns reports whether processes of that container are the box's.
func (b *box) owns(container string) bool { return container == b.id || container == b.unfilteredID() }

// inTable reports whether a filter is the one in the table, which is the first box's.
func (b *box) inTable(f *payloadFilter) bool {
	first := b.first.r.Filter
	return f != nil && len(f.Allowed) > 0 && first != nil && len(first.Allowed) > 0 && bytes.Equal(f.Program, first.Program)
}

// payloadFilters are those that an executor has made, by their programs.
type payloadFilters struct {
	mu   sync.Mutex
	made map[string]*payloadFilter
}

// maxPayloadFilters is how many filters of payloads are kept: more than there are profiles in use.
const maxPayloadFilters = 8

// of makes a program a payload's filter.
func (f *payloadFilters) of(program []xbpf.RawInstruction) (*payloadFilter, error) {
	if len(program) == 0 {
		return nil, errors.New("seccomp profile: no instructions")
	}
	instructions := make([]bpf.Instruction, len(program))
	for i, in := range program {
		instructions[i] = bpf.Instruction{OpCode: in.Op, JumpIfTrue: in.Jt, JumpIfFalse: in.Jf, K: in.K}
	}
	code := bpf.ToBytecode(instructions)
	f.mu.Lock()
	defer f.mu.Unlock()
	if made, ok := f.made[string(code)]; ok {
		return made, nil
	}
	p, err := bpf.Compile(instructions, false)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	made := &payloadFilter{Program: code}
	if allowsOrRefuses(instructions) {
		if made.Allowed, err = alwaysAllowed(p); err != nil {
			return nil, fmt.Errorf("seccomp profile: %w", err)
		}
	}
	if len(f.made) >= maxPayloadFilters || f.made == nil {
		f.made = map[string]*payloadFilter{}
	}
	f.made[string(code)] = made
	return made, nil
}

// allowsOrRefuses reports whether a program of sandbox.CompileSeccomp has no other answers. Its last instruction
// is for calls of a processor that it does not know, which a sentry has none of.
func allowsOrRefuses(program []bpf.Instruction) bool {
	for _, in := range program[:len(program)-1] {
		if !in.IsReturn() {
			continue
		}
		action := linux.BPFAction(in.K) & linux.SECCOMP_RET_ACTION_FULL
		if in.OpCode != bpf.Ret|bpf.K || action != linux.SECCOMP_RET_ALLOW && action != linux.SECCOMP_RET_ERRNO {
			return false
		}
	}
	return true
}

// callWords are enough for the numbers of all system calls. Those beyond are not looked up: the program runs.
const callWords = 8

// alwaysAllowed are the system calls that a program allows without a look at their arguments.
func alwaysAllowed(p bpf.Program) ([]uint64, error) {
	const arguments = 8 // behind number and architecture, struct seccomp_data
	set := make([]uint64, callWords)
	for nr := range int32(64 * callWords) {
		d := linux.SeccompData{Nr: nr, Arch: seccomp.LINUX_AUDIT_ARCH}
		run, err := bpf.InstrumentedExec[bpf.NativeEndian](p, seccomp.DataAsBPFInput(&d, make([]byte, d.SizeBytes())))
		if err != nil {
			return nil, err
		}
		looked := false
		for _, at := range run.InputAccessed[arguments:] {
			looked = looked || at
		}
		if !looked && linux.BPFAction(run.ReturnValue) == linux.SECCOMP_RET_ALLOW {
			set[nr/64] |= 1 << (nr % 64)
		}
	}
	return set, nil
}

// allows reports whether a system call is allowed whatever its arguments are.
func (f *payloadFilter) allows(nr uintptr) bool {
	return nr/64 < uintptr(len(f.Allowed)) && f.Allowed[nr/64]&(1<<(nr%64)) != 0
}

// add makes it a filter of the processes that t begins.
func (f *payloadFilter) add(t *kernel.Task) error {
	if f == nil {
		return nil
	}
	p, err := f.compile(true)
	if err != nil {
		return err
	}
	if err := t.AppendSyscallFilter(p, false); err != nil {
		return fmt.Errorf("seccomp filter: %w", err)
	}
	return nil
}

// compile makes it a program that can run; one that runs often is worth to be made short.
func (f *payloadFilter) compile(short bool) (bpf.Program, error) {
	if len(f.Program) == 0 {
		return bpf.Program{}, errors.New("seccomp filter: no instructions")
	}
	instructions, err := bpf.ParseBytecode(f.Program)
	if err != nil {
		return bpf.Program{}, fmt.Errorf("seccomp filter: %w", err)
	}
	p, err := bpf.Compile(instructions, short)
	if err != nil {
		return bpf.Program{}, fmt.Errorf("seccomp filter: %w", err)
	}
	return p, nil
}

// systemCalls is the sentry's table of system calls. It may be changed until enforce was called.
func systemCalls() (*kernel.SyscallTable, error) {
	table, ok := kernel.LookupSyscallTable(abi.Linux, arch.Host)
	if !ok {
		return nil, fmt.Errorf("system calls of %v: there are none", arch.Host)
	}
	return table, nil
}

// enforce puts a filter, if there is one that can be there, into the table of system calls, and the table into force.
func (b *box) enforce(f *payloadFilter) error {
	table, err := systemCalls()
	if err != nil {
		return err
	}
	defer table.Init()
	if f == nil || len(f.Allowed) == 0 {
		return nil
	}
	p, err := f.compile(false)
	if err != nil {
		return err
	}
	for nr, call := range table.Table {
		if f.allows(nr) {
			continue
		}
		plain := call.Fn
		call.Fn = func(t *kernel.Task, nr uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
			if answer, refused := refuse(p, t, nr, args); refused {
				return answer, nil, nil
			}
			return plain(t, nr, args)
		}
		table.Table[nr] = call
	}
	missing := table.Missing
	table.Missing = func(t *kernel.Task, nr uintptr, args arch.SyscallArguments) (uintptr, error) {
		if answer, refused := refuse(p, t, nr, args); refused {
			return answer, nil
		}
		return missing(t, nr, args)
	}
	return nil
}

// refuse reports whether a program refuses a call of t, and what the caller sees then. It is
// called on t's own goroutine.
func refuse(p bpf.Program, t *kernel.Task, nr uintptr, args arch.SyscallArguments) (answer uintptr, refused bool) {
	if strings.HasSuffix(t.ContainerID(), unfiltered) {
		return 0, false
	}
	d := linux.SeccompData{Nr: int32(nr), Arch: seccomp.LINUX_AUDIT_ARCH, InstructionPointer: uint64(t.Arch().IP())}
	for i := range d.Args {
		d.Args[i] = args[i].Uint64()
	}
	in := t.CopyScratchBuffer(d.SizeBytes())
	d.MarshalUnsafe(in)
	result, err := bpf.Exec[bpf.NativeEndian](p, in)
	action := linux.BPFAction(result)
	if err == nil && action == linux.SECCOMP_RET_ALLOW {
		return 0, false
	}
	errno := uintptr(unix.EPERM) // for what allowsOrRefuses keeps out
	if err == nil && action&linux.SECCOMP_RET_ACTION_FULL == linux.SECCOMP_RET_ERRNO {
		errno = uintptr(action.Data())
	}
	return -errno, true
}
