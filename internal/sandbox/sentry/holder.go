package sentry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/sandbox/sentry/filter"
	"den/internal/sys"
)

// Descriptors of a holder. The first ones are its child's, too.
const (
	fdNull    = 0 // and 1
	fdLog     = 2
	fdControl = filter.ControlFD // the child's end of the control socket
	fdAlive   = 4                // ends when den is gone or wants an end
	fdStatus  = 5
	fdProgram = 6
)

// recordBytes is what a holder writes: what it says, and a value.
const (
	recordBytes = 16
	recordPid   = ^uint64(0)
	recordExit  = ^uint64(0) - 1
)

// logBytes is how much of a dead child's last words is shown.
const logBytes = 1 << 10

// A child is a den that was executed again to be a sentry or a gofer, and its
// holder: a process of a few pages, which is a plan and not Go. The holder
// is the nearest subreaper of the processes that a sentry leaves behind, kills the child
// when den is gone, and ends when nothing is left. So den reaps one child that it
// knows and no stranger, and a kill of den leaves nothing.
type child struct {
	holder  int
	pid     int
	control *os.File
	alive   *os.File
	status  *os.File
	log     *os.File
	once    sync.Once
	result  unix.WaitStatus
	err     error
}

// holderPlan is the life of a holder whose child is den with argv.
func holderPlan(argv []string) *sys.Plan {
	p := sys.NewPlan()
	failed, child, loop, reap, ended, kill := p.Label(), p.Label(), p.Label(), p.Label(), p.Label(), p.Label()
	p.OnFatal(failed)
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdProgram+1), sys.Int(^uint32(0)), sys.Int(0))
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_NAME), p.Str("den-holder")).MayFail()
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_DUMPABLE), sys.Int(0)).MayFail()
	p.Do(unix.SYS_SETSID).MayFail()
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_CHILD_SUBREAPER), sys.Int(1)).Note("become a subreaper")
	mask := func(set uint64) {
		p.Do(unix.SYS_RT_SIGPROCMASK, sys.Int(unix.SIG_SETMASK), p.Words(sys.Int(set)), sys.Int(0), sys.Int(8))
	}
	mask(^uint64(0))
	started := p.Words(sys.Int(recordPid), sys.Int(0))
	exit := p.Words(sys.Int(recordExit), sys.Int(0))
	pid, status, last := started.Part(8), exit.Part(8), p.Cell(0)
	// Two struct pollfd; clone writes the pidfd into the second.
	polls := p.Words(sys.Int(uint64(fdAlive|unix.POLLIN<<32)), sys.Int(uint64(unix.POLLIN<<32)))
	p.Do(unix.SYS_CLONE, sys.Int(unix.CLONE_PIDFD|int(unix.SIGCHLD)), sys.Int(0), polls.Part(8).Addr(), sys.Int(0), sys.Int(0)).
		To(pid).Zero(child).Note("clone")
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdNull), sys.Int(fdControl), sys.Int(0)).MayFail()
	p.Do(unix.SYS_WRITE, sys.Int(fdStatus), started, sys.Int(recordBytes)).MayFail()

	p.Mark(loop)
	p.Do(unix.SYS_PPOLL, polls, sys.Int(2), sys.Int(0), sys.Int(0), sys.Int(8)).MayFail()
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), sys.Int(unix.WNOHANG), sys.Int(0)).Pos(ended).Err(ended)
	// Either the pipe of den ended, or an orphan did.
	one := p.Words(sys.Int(uint64(fdAlive | unix.POLLIN<<32)))
	p.Do(unix.SYS_PPOLL, one, sys.Int(1), p.Words(sys.Int(0), sys.Int(0)), sys.Int(0), sys.Int(8)).Pos(kill).Err(loop).Zero(loop)
	p.Mark(kill)
	p.Do(unix.SYS_KILL, pid.Value(), sys.Int(int(unix.SIGKILL))).MayFail()
	p.Do(unix.SYS_WAIT4, pid.Value(), status.Addr(), sys.Int(0), sys.Int(0)).MayFail()
	p.Mark(ended)
	p.Mark(reap)
	p.Do(unix.SYS_WAIT4, sys.Int(-1), last.Addr(), sys.Int(unix.WALL), sys.Int(0)).MayFail().Pos(reap)
	p.Do(unix.SYS_WRITE, sys.Int(fdStatus), exit, sys.Int(recordBytes)).MayFail()
	p.Exit(0)

	p.Mark(child)
	p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_PDEATHSIG), sys.Int(int(unix.SIGKILL)))
	p.Do(unix.SYS_CLOSE_RANGE, sys.Int(fdAlive), sys.Int(^uint32(0)), sys.Int(unix.CLOSE_RANGE_CLOEXEC))
	mask(0)
	p.Do(unix.SYS_SETSID).MayFail()
	if gathers() {
		p.Do(unix.SYS_PRCTL, sys.Int(unix.PR_SET_TIMERSLACK), sys.Int(int(timerSlack.Nanoseconds()))).MayFail()
	}
	p.Do(unix.SYS_EXECVEAT, sys.Int(fdProgram), p.Str(""), p.Strs(argv), p.Strs([]string{noCollection}), sys.Int(unix.AT_EMPTY_PATH)).Note("execute den as " + argv[0])
	p.Mark(failed)
	p.Do(unix.SYS_WRITE, sys.Int(fdStatus), sys.FailureRecord(), sys.Int(sys.FailureBytes)).MayFail()
	p.Exit(125)
	return p
}

// spawn starts den with argv. The caller has to end it.
func spawn(argv ...string) (_ *child, err error) {
	if slices.Contains([]string{sentryName, goferName, trialName}, os.Args[0]) {
		return nil, fmt.Errorf("start %s: this program does not begin with sentry.Main", argv[0])
	}
	c := &child{holder: -1}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			c.end()
			err = fmt.Errorf("start %s: %w", argv[0], err)
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, null)
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, program)
	logFD, err := unix.MemfdCreate("den-log", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	c.log = os.NewFile(uintptr(logFD), "den-log")
	var socket *os.File
	if c.control, socket, err = socketPair(); err != nil {
		return nil, err
	}
	theirs = append(theirs, socket)
	alive, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.alive, theirs = ours, append(theirs, alive)
	status, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.status, theirs = status, append(theirs, w)

	p := holderPlan(argv)
	// Files whose flags Fd would change are den's alone.
	if c.holder, err = p.Start("den-holder", []*os.File{null, null, c.log, socket, alive, w, program}); err != nil {
		c.holder = -1
		return nil, err
	}
	kind, value, err := c.record()
	if err == nil && kind != recordPid {
		err = p.Failure(value, unix.Errno(kind))
	}
	c.pid = int(value)
	return c, err
}

// record reads what the holder says.
func (c *child) record() (kind, value uint64, err error) {
	var b [recordBytes]byte
	if _, err := io.ReadFull(c.status, b[:]); err != nil {
		return 0, 0, fmt.Errorf("the holder ended early: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:]), nil
}

// wait returns when the child and all that it left behind are gone, and says how it ended.
func (c *child) wait() (unix.WaitStatus, error) {
	c.once.Do(func() {
		kind, value, err := c.record()
		if err == nil && kind != recordExit {
			err = fmt.Errorf("the holder says %#x: %w", kind, unix.Errno(kind))
		}
		c.result, c.err = unix.WaitStatus(value), err
		for {
			if _, err := unix.Wait4(c.holder, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		c.holder = -1
	})
	return c.result, c.err
}

// kill ends the child now. It may be called at any time, and again.
func (c *child) kill() { _ = c.alive.Close() }

// end kills what is still there, waits for it and closes everything.
func (c *child) end() {
	if c.alive != nil {
		c.kill()
	}
	if c.holder > 0 {
		_, _ = c.wait()
	}
	for _, f := range []*os.File{c.control, c.status, c.log} {
		if f != nil {
			f.Close()
		}
	}
}

// died is the error of a child that ended when it should not have.
func (c *child) died(ws unix.WaitStatus) error {
	how := fmt.Sprintf("exit status %d", ws.ExitStatus())
	if ws.Signaled() {
		how = ws.Signal().String()
	}
	if words := c.lastWords(); words != "" {
		how += ": " + words
	}
	return errors.New(how)
}

// hasSpoken says whether there is something to be read that the child has said.
func (c *child) hasSpoken() bool {
	spoken := false
	conn, err := c.control.SyscallConn()
	if err != nil {
		return false
	}
	_ = conn.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		spoken = err == nil && n > 0
	})
	return spoken
}

// lastWords is the beginning of what the child has written before it died: after a
// panic what it was and where.
func (c *child) lastWords() string {
	b := make([]byte, logBytes)
	n, _ := c.log.ReadAt(b, 0)
	return strings.Join(strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == '\n' }), "; ")
}

// socketPair is a stream socket of which den's end can be polled.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "sentry"), os.NewFile(uintptr(fds[1]), "sentry"), nil
}
