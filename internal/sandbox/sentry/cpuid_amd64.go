package sentry

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// leaveCPUID has the processor answer a payload's CPUID instructions. A platform asks the kernel to have its
// processes trap at them (ARCH_SET_CPUID of arch_prctl(2)) and then answers as the processor would; but the trap
// is a register of the processor, which the kernel writes at each switch between the sentry and such a process, and in a
// virtual machine each write is an exit to the hypervisor, as CPUID is itself. So this filter of all threads, and of
// what they start, answers that call as a processor that cannot trap does.
func leaveCPUID() error {
	var d linux.SeccompData
	const errno = uint32(linux.SECCOMP_RET_ERRNO) | uint32(unix.ENODEV)
	err := seccomp.SetFilter([]bpf.Instruction{
		bpf.Stmt(bpf.Ld|bpf.W|bpf.Abs, uint32(unsafe.Offsetof(d.Arch))),
		bpf.Jump(bpf.Jmp|bpf.Jeq|bpf.K, linux.AUDIT_ARCH_X86_64, 0, 5),
		bpf.Stmt(bpf.Ld|bpf.W|bpf.Abs, uint32(unsafe.Offsetof(d.Nr))),
		bpf.Jump(bpf.Jmp|bpf.Jeq|bpf.K, unix.SYS_ARCH_PRCTL, 0, 3),
		bpf.Stmt(bpf.Ld|bpf.W|bpf.Abs, uint32(unsafe.Offsetof(d.Args))), // of a little-endian word the lower half
		bpf.Jump(bpf.Jmp|bpf.Jeq|bpf.K, linux.ARCH_SET_CPUID, 0, 1),
		bpf.Stmt(bpf.Ret|bpf.K, errno),
		bpf.Stmt(bpf.Ret|bpf.K, uint32(linux.SECCOMP_RET_ALLOW)),
	})
	if err != nil {
		return fmt.Errorf("filter of arch_prctl: %w", err)
	}
	return nil
}
