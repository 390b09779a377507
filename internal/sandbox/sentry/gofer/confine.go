package gofer

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/runsc/fsgofer/filter"
)

const (
	// maxMemoryBytes bounds what a gofer's process may write to. lisafs believes
	// any length of a message; who claims a long one ends his own gofer.
	maxMemoryBytes = 512 << 20
	// calmMemoryBytes is what the collector works to stay below.
	calmMemoryBytes = 192 << 20
)

// Confine takes from this process what serving trees does not need: memory
// without bound, core dumps, and all system calls but those of its trade.
// Trees are opened before.
func Confine() error {
	for what, limit := range map[int]uint64{unix.RLIMIT_DATA: maxMemoryBytes, unix.RLIMIT_CORE: 0} {
		var was unix.Rlimit
		if err := unix.Getrlimit(what, &was); err != nil {
			return fmt.Errorf("confine the gofer: getrlimit: %w", err)
		}
		limit = min(limit, was.Max)
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("confine the gofer: setrlimit: %w", err)
		}
	}
	debug.SetMemoryLimit(calmMemoryBytes)
	err := filter.Install(filter.Options{UDSOpenEnabled: true, UDSCreateEnabled: true, CgoEnabled: cgo, ExtraRules: []seccomp.SyscallRules{calls()}})
	if err != nil {
		return fmt.Errorf("confine the gofer: seccomp: %w", err)
	}
	return nil
}

// calls are the system calls of this package beyond those of gVisor's own
// gofer, whose filter allows its.
func calls() seccomp.SyscallRules {
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
