package sandbox

import (
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Descriptors of the plan's processes. Those of the holder come after those of
// the payload's, which closes them before anything else.
const (
	fdProgress = 3 // the payload's: failures and questions to den; ends at exec
	fdSync     = 4 // den's answers
	fdSend     = 5 // a socket for descriptors: the root directory, the terminal's master
	fdInit     = 6 // the status pipe, for process 1 if it is not the payload
	fdControl  = 7 // signals to send; its end is den's
	fdStatus   = 8 // what became of the payload
	fdLeases   = 9
)

// Kinds of records on the status pipe, in the first of two words; a kernel's
// errno there means that clone failed.
const (
	recordPid    = 1<<32 | 1 // the payload's process id
	recordExit   = 1<<32 | 2 // its wait status
	recordInit   = 1<<32 | 3 // the wait status of process 1's child, the payload
	recordLength = 16
)

// Questions on the progress pipe, in the second word after a 0; lower numbers
// ask for the target of that mount.
const (
	askCwd       = 1 << 16
	askHome      = 1<<16 + 1
	sayNotInPath = 1<<16 + 2
)

// A target is a mount point that den may have to make.
type target struct {
	path string
	dir  bool
}

// execStage is what an operation of the last part of a plan was doing.
type execStage int

const (
	stageFind execStage = iota + 1
	stageIsDir
	stageExec
	stageCwd
)

// A program is a plan together with what den has to know to follow it.
type program struct {
	*sys.Plan
	r       *Request
	spec    *specs.Spec
	mounts  []mount
	targets []target
	exec    map[*sys.Op]execStage
	null    *sys.Cell // the sandbox's /dev/null
	home    sys.Arg   // "HOME=..." as den answered; the zero Arg if the request has one
	o       programOptions
}

// programOptions are facts about den and decisions that Start has made.
type programOptions struct {
	leases        int
	cgroup        bool // den puts the payload in a cgroup before it goes on
	cgroupVersion int
	sharePids     bool
	detach        bool       // the holder outlives den
	chroot        bool       // nothing is mounted and no namespace made
	join          *joining   // the sandbox to start in, for Exec
	caps          sys.CapSet // what den itself may give
	bounding      sys.CapSet // what den could get
	filter        []byte     // seccomp program, or nil
	lowerdirPlus  bool       // the kernel takes overlay directories one by one
	ownStdio      [3]bool    // pipes that den made for this payload
	rlimit        func(resource int) (unix.Rlimit, error)
	uidMapped     func(uid uint32) bool
	gidMapped     func(gid uint32) bool
}

// newProgram plans the whole life of a sandbox: a holder that clones the
// payload and outlives it, the way of the payload from clone to exec, and the
// reaper if one is wanted.
func newProgram(r *Request, o programOptions) (*program, error) {
	p := &program{Plan: sys.NewPlan(), r: r, spec: r.Spec, o: o, exec: map[*sys.Op]execStage{}}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := p.Label()
	p.holder(payload)
	p.Mark(payload)
	return p, p.payload()
}

// check refuses what this executor cannot do.
func (p *program) check() error {
	if err := CheckText(p.r); err != nil {
		return err
	}
	if len(p.spec.Linux.UIDMappings)+len(p.spec.Linux.GIDMappings) > 0 || p.namespace(specs.UserNamespace) != nil {
		return fmt.Errorf("sandbox %s: a user namespace of its own is not supported", p.r.ID)
	}
	return nil
}

// namespace is the specification's entry of that type, or nil.
func (p *program) namespace(t specs.LinuxNamespaceType) *specs.LinuxNamespace {
	for i, n := range p.spec.Linux.Namespaces {
		if n.Type == t {
			return &p.spec.Linux.Namespaces[i]
		}
	}
	return nil
}

// fresh reports whether the sandbox gets a new namespace of that type.
func (p *program) fresh(t specs.LinuxNamespaceType) bool {
	if p.o.chroot {
		return false
	}
	switch t {
	case specs.PIDNamespace:
		if p.o.sharePids {
			return false
		}
	case specs.NetworkNamespace:
		if p.namespace(t) == nil {
			return p.r.Network == NetworkNone
		}
	}
	n := p.namespace(t)
	return n != nil && n.Path == ""
}

// cloneFlags are the namespaces that begin with the payload's first process.
func (p *program) cloneFlags() int {
	if p.o.chroot {
		return 0
	}
	flags := unix.CLONE_NEWNS
	for t, f := range map[specs.LinuxNamespaceType]int{
		specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET,
		specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS,
	} {
		if p.fresh(t) {
			flags |= f
		}
	}
	return flags
}

// holder is the process that holds the leases. It is outside of every namespace
// of the payload and has den's control pipe: when that ends, den is gone and the payload
// is killed; only when the payload is gone the holder ends, and with it the leases.
func (p *program) holder(payload sys.Label) {
	failed, ended := p.Label(), p.Label()
	p.OnFatal(failed)
	p.holderBegin("den-holder")
	started := p.Words(sys.Int(uint64(recordPid)), sys.Int(0))
	exit := p.Words(sys.Int(uint64(recordExit)), sys.Int(0))
	pid, status := started.Part(8), exit.Part(8)
	// Three struct pollfd; clone writes the pidfd into the second.
	polls := p.Words(sys.Int(uint64(fdControl|unix.POLLIN<<32)), sys.Int(uint64(unix.POLLIN<<32)), sys.Int(uint64(p.fdLeash()|unix.POLLIN<<32)))
	p.Do(unix.SYS_CLONE, sys.Int(p.cloneFlags()|unix.CLONE_PIDFD|int(unix.SIGCHLD)), sys.Int(0), polls.Part(8).Addr(),
		sys.Int(0), sys.Int(0)).To(pid).Zero(payload).Note("create namespaces")
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(0), sys.Int(fdInit), sys.Int(0)).MayFail()
	p.tell(started)
	if p.o.detach {
		p.holdAlone(polls, pid, status, ended)
	} else {
		p.holdWithDen(polls, pid, status, ended)
	}
	p.holderEnd(ended, failed, exit)
}

// holdWithDen waits for the payload's end and kills it when den is gone.
func (p *program) holdWithDen(polls sys.Arg, pid, status *sys.Cell, ended sys.Label) {
	loop, orphan := p.Label(), p.Label()
	signal := p.Cell(0)
	p.Mark(loop)
	p.Do(unix.SYS_PPOLL, polls, sys.Int(2), sys.Int(0), sys.Int(0), sys.Int(8)).MayFail()
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), sys.Int(unix.WNOHANG), sys.Int(0)).Pos(ended).Err(ended)
	p.Do(unix.SYS_READ, sys.Int(fdControl), signal.Addr(), sys.Int(8)).Err(loop).Zero(orphan)
	p.Do(unix.SYS_KILL, pid.Value(), signal.Value()).MayFail()
	p.Goto(loop)
	p.Mark(orphan)
	p.killAndWait(pid, status)
}

func (p *program) killAndWait(pid, status *sys.Cell) {
	p.Do(unix.SYS_KILL, pid.Value(), sys.Int(int(unix.SIGKILL))).MayFail()
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), sys.Int(0), sys.Int(0)).MayFail()
}

// holderBegin makes the process one that nobody sees into or signals by accident, with
// the descriptors that it was given.
func (p *program) holderBegin(name string) {
	rest := p.fdRecords()
	if p.o.detach {
		rest += 3
	}
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(rest), sys.Int(^uint32(0)), sys.Int(0))
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_NAME), p.Str(name)).MayFail()
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_DUMPABLE), sys.Int(0)).MayFail()
	p.Do(unix.SYS_SETSID).MayFail()
	p.signalMask(^uint64(0))
	p.Do(unix.SYS_FCNTL, sys.Int(fdControl), sys.Int(unix.F_SETFL), sys.Int(unix.O_NONBLOCK))
	if p.o.sharePids {
		p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_CHILD_SUBREAPER), sys.Int(1)).MayFail()
	}
	if p.o.detach {
		p.detachBegin()
	}
}

// holderEnd tells den how the payload ended, or what the holder failed in.
func (p *program) holderEnd(ended, failed sys.Label, exit sys.Arg) {
	p.Mark(ended)
	p.tell(exit)
	if p.o.sharePids {
		p.reapOrphans(p.fdReaper())
	}
	p.letGo()
	p.linger()
	p.Exit(0)
	p.Mark(failed)
	p.tell(sys.FailureRecord())
	p.Exit(1)
}

// payload is the way of the payload's first process from clone to exec.
func (p *program) payload() error {
	failed := p.Label()
	p.OnFatal(failed)
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdControl), sys.Int(^uint32(0)), sys.Int(0))
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdProgress), sys.Int(fdInit), sys.Int(unix.CLOSE_RANGE_CLOEXEC))
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_PDEATHSIG), sys.Int(int(unix.SIGKILL)))
	p.resetSignals()
	p.Do(unix.SYS_SETSID)
	// Keys of den's session are not the payload's.
	p.Do(unix.SYS_KEYCTL, sys.Int(unix.KEYCTL_JOIN_SESSION_KEYRING), sys.Int(0)).MayFail()
	if p.o.cgroup {
		p.await()
	}
	if p.fresh(specs.CgroupNamespace) {
		p.Do(unix.SYS_UNSHARE, sys.Int(unix.CLONE_NEWCGROUP)).MayFail()
	}
	p.joinNamespaces()
	if p.o.join == nil {
		p.oomScore()
	}
	p.Do(unix.SYS_UMASK, sys.Int(0))
	switch {
	case p.o.chroot:
		p.changeRoot()
	case p.o.join != nil:
		p.joinedRoot()
	default:
		if err := p.fileSystem(); err != nil {
			return err
		}
	}
	if err := p.process(); err != nil {
		return err
	}
	p.Mark(failed)
	p.Do(unix.SYS_WRITE, sys.Int(fdProgress), sys.FailureRecord(), sys.Int(sys.FailureBytes)).MayFail()
	p.Exit(126)
	return nil
}

// signalMask blocks the signals in mask and no others.
func (p *program) signalMask(mask uint64) {
	p.Do(unix.SYS_RT_SIGPROCMASK, sys.Int(unix.SIG_SETMASK), p.Words(sys.Int(mask)), sys.Int(0), sys.Int(8))
}

// resetSignals undoes what den's parent ignores: that survives exec.
func (p *program) resetSignals() {
	def := p.Buffer(64)
	for _, s := range []unix.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGCHLD, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGXFSZ,
	} {
		p.Do(unix.SYS_RT_SIGACTION, sys.Int(int(s)), def, sys.Int(0), sys.Int(8))
	}
}

// await waits for a byte from den. If den is gone there is nothing left to do.
func (p *program) await() {
	gone, ok := p.Label(), p.Label()
	p.Do(unix.SYS_READ, sys.Int(fdSync), p.Cell(0).Addr(), sys.Int(1)).Pos(ok).Err(gone)
	p.Mark(gone)
	p.Exit(125)
	p.Mark(ok)
}

// ask writes a question to den and waits until it has done its part.
func (p *program) ask(n int) {
	p.Do(unix.SYS_WRITE, sys.Int(fdProgress), p.Words(sys.Int(0), sys.Int(n)), sys.Int(recordLength))
	p.await()
}

// joinNamespaces enters the namespaces that the specification gives by path.
func (p *program) joinNamespaces() {
	fd := p.Cell(0)
	for _, n := range p.spec.Linux.Namespaces {
		if n.Path == "" || n.Type == specs.PIDNamespace || n.Type == specs.MountNamespace {
			continue
		}
		note := fmt.Sprintf("join %s namespace %s", n.Type, n.Path)
		p.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), p.Str(n.Path), sys.Int(unix.O_RDONLY|unix.O_CLOEXEC)).To(fd).Note(note)
		p.Do(unix.SYS_SETNS, fd.Value(), sys.Int(0)).Note(note)
		p.Close(fd)
	}
}

// oomScore is best effort: lowering it needs a right that den seldom has.
func (p *program) oomScore() {
	if p.spec.Process.OOMScoreAdj == nil {
		return
	}
	v := fmt.Sprint(*p.spec.Process.OOMScoreAdj)
	fd := p.Cell(0)
	p.Do(unix.SYS_OPENAT, sys.Int(unix.AT_FDCWD), p.Str("/proc/self/oom_score_adj"), sys.Int(unix.O_WRONLY|unix.O_CLOEXEC)).To(fd).MayFail()
	p.Do(unix.SYS_WRITE, fd.Value(), p.Str(v), sys.Int(len(v))).MayFail()
	p.Close(fd)
}

// inside is path as an absolute, clean path of the sandbox.
func inside(path string) string { return filepath.Clean("/" + path) }
