package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BecomeReaper replaces the calling process by a small one that reaps whoever has lost its
// parent, as a container's first process has to, and that has started the program path:
// signals are passed on to that, and when it ends so does the reaper, with its status
// (128 plus the signal that killed it). It is what docker-init is for, and takes no
// memory to speak of. It returns only on error. Descriptors that are not marked
// close-on-exec are the program's.
func BecomeReaper(path string, argv, env []string) error {
	if err := reaper(path, argv, env).Exec("den-init"); err != nil {
		return fmt.Errorf("become init of %s: %w", path, err)
	}
	return nil
}

func reaper(path string, argv, env []string) *Plan {
	p := NewPlan()
	payload, loop, forward, child, reap, check, done, exited := p.Label(), p.Label(), p.Label(), p.Label(), p.Label(), p.Label(), p.Label(), p.Label()
	all, none := p.Words(Int(^uint64(0))), p.Words(Int(0))
	status := p.Words(Int(0))
	pid, other, chld := p.Cell(0), p.Cell(0), p.Cell(0)
	p.Do(unix.SYS_PRCTL, Int(unix.PR_SET_NAME), p.Str("den-init")).MayFail()
	p.Do(unix.SYS_PRCTL, Int(unix.PR_SET_CHILD_SUBREAPER), Int(1)).MayFail() // where it is not process 1
	p.Do(unix.SYS_RT_SIGPROCMASK, Int(unix.SIG_BLOCK), all, Int(0), Int(8)).Note("block signals")
	p.Do(unix.SYS_CLONE, Int(int(unix.SIGCHLD)), Int(0), Int(0), Int(0), Int(0)).To(pid).Zero(payload).Note("start the program")
	p.Do(unix.SYS_CLOSE_RANGE, Int(firstOwn), Int(^uint32(0)), Int(0)).MayFail()
	const sigchld = uint64(1) << (unix.SIGCHLD - 1)
	flags := Int(unix.SFD_NONBLOCK | unix.SFD_CLOEXEC)
	p.Do(unix.SYS_SIGNALFD4, Int(-1), p.Words(Int(sigchld)), Int(8), flags).To(chld)
	p.Do(unix.SYS_SIGNALFD4, Int(-1), p.Words(Int(^sigchld)), Int(8), flags).To(other)
	polls := p.Words(Int(uint64(firstOwn|unix.POLLIN<<32)), Int(uint64(firstOwn+1|unix.POLLIN<<32)))
	info := p.Buffer(signalInfoBytes)

	p.Mark(loop)
	p.Do(unix.SYS_PPOLL, polls, Int(2), Int(0), Int(0), Int(8)).MayFail()
	p.Mark(forward)
	p.Do(unix.SYS_READ, other.Value(), info, Int(signalInfoBytes)).Err(child).Zero(child)
	p.Do(unix.SYS_KILL, pid.Value(), info.Part(0).Value()).MayFail()
	p.Goto(forward)
	p.Mark(child)
	p.Do(unix.SYS_READ, chld.Value(), info, Int(signalInfoBytes)).MayFail()
	p.Mark(reap)
	p.Do(unix.SYS_WAIT4, Int(-1), status, Int(unix.WNOHANG), Int(0)).Zero(loop).Pos(check).Err(done)
	p.Mark(check)
	// Whose status it was: the program's if that is gone now.
	p.Do(unix.SYS_KILL, pid.Value(), Int(0)).Zero(reap).Err(done)

	// A plan cannot calculate; a file's offset can. The status' first byte is the signal, its
	// second the exit code.
	p.Mark(done)
	file, signal, code := p.Cell(0), p.Cell(0), p.Cell(0)
	p.Do(unix.SYS_MEMFD_CREATE, p.Str("status"), Int(0)).To(file)
	p.Do(unix.SYS_PWRITE64, file.Value(), status, Int(4), Int(0))
	p.Do(unix.SYS_PREAD64, file.Value(), signal.Addr(), Int(1), Int(0))
	p.Do(unix.SYS_PREAD64, file.Value(), code.Addr(), Int(1), Int(1))
	p.Do(unix.SYS_LSEEK, file.Value(), signal.Value(), Int(unix.SEEK_SET)).Zero(exited)
	p.Do(unix.SYS_LSEEK, file.Value(), Int(128), Int(unix.SEEK_CUR)).To(code)
	p.Mark(exited)
	p.Do(unix.SYS_EXIT_GROUP, code.Value())

	p.Mark(payload)
	// A group of its own, or the terminal's signals come twice.
	group := p.Cell(0)
	p.Do(unix.SYS_SETPGID, Int(0), Int(0)).MayFail()
	p.Do(unix.SYS_GETPID).To(group)
	p.Do(unix.SYS_IOCTL, Int(0), Int(unix.TIOCSPGRP), group.Addr()).MayFail()
	p.Do(unix.SYS_RT_SIGPROCMASK, Int(unix.SIG_SETMASK), none, Int(0), Int(8)).Note("unblock signals")
	p.Do(unix.SYS_EXECVE, p.Str(path), p.Strs(argv), p.Strs(env)).Note("execute")
	p.Exit(127)
	return p
}

const (
	firstOwn        = 3   // after the standard streams
	signalInfoBytes = 128 // struct signalfd_siginfo
)
