package sentry

import (
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
)

// commitOnFault has mappings get their memory page by page, and not all of it in one call, while
// there is a limit: nobody can interrupt a call that takes gigabytes, and by its end it has taken
// them. What a program may notice is that mlock(2) is MLOCK_ONFAULT, and MAP_POPULATE
// nothing, which mmap(2) allows. It is in force when enforce has been called.
func (b *box) commitOnFault() error {
	table, err := systemCalls()
	if err != nil {
		return err
	}
	change := func(name, as string, args func(*arch.SyscallArguments)) error {
		from, err := table.LookupNo(name)
		if err != nil {
			return err
		}
		to, err := table.LookupNo(as)
		if err != nil {
			return err
		}
		entry, plain, limited := table.Table[from], table.Table[from].Fn, table.Table[to].Fn
		entry.Fn = func(t *kernel.Task, sysno uintptr, a arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
			if b.limits().MaxMemoryBytes <= 0 {
				return plain(t, sysno, a)
			}
			args(&a)
			return limited(t, sysno, a)
		}
		table.Table[from] = entry
		return nil
	}
	for _, c := range []struct {
		name, as string
		args     func(*arch.SyscallArguments)
	}{
		{"mmap", "mmap", func(a *arch.SyscallArguments) { a[3].Value &^= linux.MAP_POPULATE | linux.MAP_LOCKED }},
		{"mlock", "mlock2", func(a *arch.SyscallArguments) { a[2].Value = linux.MLOCK_ONFAULT }},
		{"mlock2", "mlock2", func(a *arch.SyscallArguments) { a[2].Value |= linux.MLOCK_ONFAULT }},
		{"mlockall", "mlockall", func(a *arch.SyscallArguments) { a[0].Value |= linux.MCL_ONFAULT }},
	} {
		if err := change(c.name, c.as, c.args); err != nil {
			return err
		}
	}
	return nil
}
