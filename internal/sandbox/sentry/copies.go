package sentry

import (
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
)

// copiedWhole is how much memory, in bytes from the start of a heap or in one mapping, is copied at once: a small
// process writes to much of what it has, and each fault takes as long as a copy of 20 pages.
const copiedWhole = 512 << 10

// copyLittle has the memory that processes allocate, beyond copiedWhole, copied by a few pages when one of two that
// share it since a fork(2) writes there, and not by 2 MiB: most forks are for an execve(2) that follows at once, and a
// package manager of 20 MiB spent half a second on copies that nobody looked at. The sentry does so with
// what is mapped as a stack, a flag that means nothing else (MAP_STACK of mmap(2)).
func copyLittle() error {
	table, err := systemCalls()
	if err != nil {
		return err
	}
	for name, change := range map[string]func(kernel.SyscallFn) kernel.SyscallFn{"brk": brkAsStack, "mmap": mapAsStack} {
		nr, err := table.LookupNo(name)
		if err != nil {
			return err
		}
		entry := table.Table[nr]
		entry.Fn = change(entry.Fn)
		table.Table[nr] = entry
	}
	return nil
}

// mapAsStack is mmap(2), for which private memory without a file is a stack.
func mapAsStack(mmap kernel.SyscallFn) kernel.SyscallFn {
	return func(t *kernel.Task, sysno uintptr, a arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
		const private = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS
		if a[3].Int()&private == private && a[1].Uint64() > copiedWhole {
			a[3].Value |= linux.MAP_STACK
		}
		return mmap(t, sysno, a)
	}
}

// heapName is what the sentry calls the mappings of a heap.
const heapName = "[heap]"

// brkAsStack is brk(2). What it adds is mapped once more, as a stack; where that is refused it
// stays as it was.
func brkAsStack(brk kernel.SyscallFn) kernel.SyscallFn {
	return func(t *kernel.Task, sysno uintptr, a arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
		m := t.MemoryManager()
		before, _ := m.Brk(t, 0) // which is too low to change it
		end, control, err := brk(t, sysno, a)
		from, ok := before.RoundUp()
		to, ok2 := hostarch.Addr(end).RoundUp()
		if start, _, err := m.FindVMAByName(hostarch.AddrRange{End: to}, heapName); err == nil {
			from = max(from, start+copiedWhole)
		}
		if ok && ok2 && from < to {
			_, _ = m.MMap(t, memmap.MMapOpts{
				Length: uint64(to - from), Addr: from, Fixed: true, Unmap: true, Private: true, Stack: true,
				Perms: hostarch.ReadWrite, MaxPerms: hostarch.AnyAccess, Name: heapName, NameMut: memmap.NameMutAnon,
			})
		}
		return end, control, err
	}
}
