package sandbox

import (
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// fdTarget is the sandbox that a program of Exec joins: a pidfd of its first process.
const fdTarget = fdLeases

// A joining says which sandbox a program is started in.
type joining struct {
	// namespaces are the CLONE_NEW* flags of those that the sandbox does not share with den.
	namespaces int
}

// newExecProgram plans the life of a program in a sandbox that runs already: a
// process that joins it, clones and waits, and what it clones on its way to exec.
func newExecProgram(r *Request, o programOptions) (*program, error) {
	p := &program{Plan: sys.NewPlan(), r: r, spec: r.Spec, o: o, exec: map[*sys.Op]execStage{}}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := p.Label()
	p.entrance(payload)
	p.Mark(payload)
	return p, p.payload()
}

// entrance is what holder is for the first process of a sandbox. It joins all
// namespaces but that of process ids, which only its child is in; so nobody in the sandbox
// sees it. When den is gone, or the sandbox's first process, it kills its child.
func (p *program) entrance(payload sys.Label) {
	failed, loop, ended, kill, check := p.Label(), p.Label(), p.Label(), p.Label(), p.Label()
	p.OnFatal(failed)
	p.holderBegin("den-exec")
	p.oomScore()
	if f := p.o.join.namespaces; f != 0 {
		// A new process could be traced by who is in there already, if it were dumpable.
		p.Do(unix.SYS_SETNS, sys.Int(fdTarget), sys.Int(f)).Note("enter the sandbox")
	}
	started := p.Words(sys.Int(uint64(recordPid)), sys.Int(0))
	exit := p.Words(sys.Int(uint64(recordExit)), sys.Int(0))
	pid, status := started.Part(8), exit.Part(8)
	// Three struct pollfd; clone writes the pidfd into the second.
	polls := p.Words(sys.Int(uint64(fdControl|unix.POLLIN<<32)), sys.Int(uint64(unix.POLLIN<<32)), sys.Int(uint64(fdTarget|unix.POLLIN<<32)))
	p.Do(unix.SYS_CLONE, sys.Int(unix.CLONE_PIDFD|int(unix.SIGCHLD)), sys.Int(0), polls.Part(8).Addr(),
		sys.Int(0), sys.Int(0)).To(pid).Zero(payload).Note("start in the sandbox")
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(0), sys.Int(fdInit), sys.Int(0)).MayFail()
	p.tell(started)

	signal := p.Cell(0)
	now := p.Words(sys.Int(0), sys.Int(0)) // struct timespec
	p.Mark(loop)
	p.Do(unix.SYS_PPOLL, polls, sys.Int(3), sys.Int(0), sys.Int(0), sys.Int(8)).MayFail()
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), sys.Int(unix.WNOHANG), sys.Int(0)).Pos(ended).Err(ended)
	p.Do(unix.SYS_READ, sys.Int(fdControl), signal.Addr(), sys.Int(8)).Err(check).Zero(kill)
	p.Do(unix.SYS_KILL, pid.Value(), signal.Value()).MayFail()
	p.Mark(check)
	p.Do(unix.SYS_PPOLL, polls.Plus(16), sys.Int(1), now, sys.Int(0), sys.Int(8)).Zero(loop).Err(loop)
	p.Mark(kill)
	p.killAndWait(pid, status)
	p.holderEnd(ended, failed, exit)
}

// joinedRoot shows den the root that setns(2) has led to.
func (p *program) joinedRoot() {
	root := p.Cell(0)
	p.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), p.Str("/"), sys.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).To(root).Note(showRoot)
	p.send(root, showRoot)
	p.Close(root)
	if p.spec.Process.Terminal {
		p.terminal()
	}
}
