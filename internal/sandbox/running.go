package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
)

// running is a started sandbox: the holder, and den's ends of its pipes.
type running struct {
	id       string
	n        *Namespaces
	parent   *running // the sandbox, for a program of Exec
	join     *joining
	execs    execs
	seccomp  *specs.LinuxSeccomp
	filter   []byte    // seccomp, compiled
	detached *detached // nil for one that ends with den
	enter    func(int) // puts the payload into a cgroup; may be nil
	program  *program
	streams  *Streams
	stubs    *stubs
	cgroup   atomic.Pointer[cgroup]
	limiting sync.Mutex // orders changes of cgroup
	ended    bool       // the cgroup is removed, no other comes
	pipes    *pipes
	holder   int
	pid      int
	root     *os.File // the payload's root directory, until it executes
	master   *os.File
	stop     func() bool
	undo     func() error // takes back what was made for the sandbox in its root; may be nil

	// Set before done is closed.
	exit Exit
	err  error
	done chan struct{}
}

// terminalName is how errors call the terminal's master.
const terminalName = "terminal"

// follow goes with the payload to its exec and does for it what it cannot do itself.
func (s *running) follow(r *Request) error {
	defer s.leaveRoot()
	kind, value, err := readRecord(s.pipes.fromHolder)
	switch {
	case err != nil:
		return fmt.Errorf("sandbox %s: the holder ended early: %w", s.id, err)
	case kind != recordPid:
		return fmt.Errorf("sandbox %s: %w", s.id, s.program.Failure(value, unix.Errno(kind)))
	}
	s.pid = int(value)
	if s.detached != nil {
		if err := failpoint.Hit("sandbox.detach.after-pid"); err != nil {
			return err
		}
	}
	if s.enter != nil {
		s.enter(s.pid)
		if err := s.answer([]byte{0}); err != nil {
			return err
		}
	}
	for {
		errno, value, err := readRecord(s.pipes.fromPayload)
		switch {
		case errors.Is(err, io.EOF): // its descriptor closed at exec
			return s.takeTerminal(r)
		case err != nil:
			return fmt.Errorf("sandbox %s: %w", s.id, err)
		case errno != 0:
			return s.failure(value, unix.Errno(errno))
		case value == sayNotInPath:
			return &ExecError{Program: s.program.spec.Process.Args[0], Code: 127, Err: ErrNotInPath}
		}
		reply := []byte{0}
		if value == askHome {
			reply, err = s.home()
		} else {
			err = s.makeTarget(value)
		}
		if err != nil {
			return fmt.Errorf("sandbox %s: %w", s.id, err)
		}
		if err := s.answer(reply); err != nil {
			return err
		}
	}
}

// answer lets the payload go on. That it is gone shows elsewhere.
func (s *running) answer(reply []byte) error {
	if _, err := s.pipes.toPayload.Write(reply); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	return nil
}

// makeTarget makes a mount point or the working directory in the new root.
func (s *running) makeTarget(question uint64) error {
	root, err := s.rootDir()
	if err != nil {
		return err
	}
	fd := int(root.Fd())
	if question == askCwd {
		return s.stubs.make(fd, s.program.spec.Process.Cwd, true, true)
	}
	if question >= uint64(len(s.program.targets)) {
		return fmt.Errorf("question %d is none of the plan's", question)
	}
	t := s.program.targets[question]
	return s.stubs.make(fd, t.path, t.dir, false)
}

// failure is the error for an operation of the plan that failed; for those of
// the last part it is what docker says.
func (s *running) failure(address uint64, errno unix.Errno) error {
	op := s.program.OpAt(address)
	name := s.program.spec.Process.Args[0]
	switch s.program.exec[op] {
	case stageFind:
		e := &ExecError{Program: name, Code: 127, Err: &os.PathError{Op: "stat", Path: op.About(), Err: errno}}
		if errno == unix.EACCES {
			e.Code, e.Err = 126, errno
		}
		return e
	case stageIsDir:
		return &ExecError{Program: name, Code: 126, Err: unix.EISDIR}
	case stageCwd: // runc's words
		return &ExecError{Program: name, Code: 126, Err: fmt.Errorf("chdir to cwd (%q) set in config.json failed: %w", s.program.spec.Process.Cwd, errno)}
	case stageExec:
		code := 126
		if errno == unix.ENOENT { // its interpreter is missing
			code = 127
		}
		return &ExecError{Program: name, Code: code, Err: &os.PathError{Op: "exec", Path: op.About(), Err: errno}}
	}
	return fmt.Errorf("sandbox %s: %w", s.id, s.program.Failure(address, errno))
}

// rootDir is the payload's root directory, which it sent after it had switched to it.
func (s *running) rootDir() (*os.File, error) {
	if s.root != nil {
		return s.root, nil
	}
	root, err := s.pipes.receive("root directory")
	if err == nil && root == nil {
		err = fmt.Errorf("root directory: %w", os.ErrProcessDone)
	}
	s.root = root
	return root, err
}

// leaveRoot closes the root directory, also where nobody asked for it: while it
// is open, its mounts stay.
func (s *running) leaveRoot() {
	if s.root != nil {
		s.root.Close()
	}
	s.pipes.received.Close()
}

// takeTerminal receives the terminal's master, which was sent before exec, after the root directory.
func (s *running) takeTerminal(r *Request) error {
	if _, err := s.rootDir(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	if !s.program.spec.Process.Terminal {
		return nil
	}
	if s.master != nil {
		s.streams.Terminal(s.master, r)
		return nil
	}
	master, err := s.pipes.receive(terminalName)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	if master == nil {
		return nil
	}
	s.master = master
	if s.detached == nil {
		s.streams.Terminal(s.master, r)
	}
	return nil
}

// run copies the streams and waits for the end, in a goroutine that Wait joins.
func (s *running) run() {
	s.streams.Start()
	go func() {
		defer close(s.done)
		s.exit, s.err = s.reap()
		s.gone()
		s.err = errors.Join(s.err, s.streams.Wait())
		s.err = errors.Join(s.err, s.finish())
	}()
}

// abandon ends a sandbox that did not come to run. Why is known; how it then
// ended is no news.
// The error is of taking back what was made in its root.
func (s *running) abandon() error {
	defer s.detached.discard()
	_ = s.Signal(unix.SIGKILL)
	_, _ = s.reap()
	s.gone()
	s.streams.CloseOwn()
	err := s.finish()
	close(s.done)
	return err
}

// gone is when the holder has ended.
func (s *running) gone() {
	s.execs.end()
	if s.parent != nil {
		s.parent.execs.remove(s)
	}
}

// reap reads how the payload ended and waits for the holder.
func (s *running) reap() (Exit, error) {
	var rs records
	err := rs.read(s.pipes.fromHolder)
	// The pipe's end is in the holder's last breath; its leases are released when it can be waited for.
	for {
		if _, err := unix.Wait4(s.holder, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if s.detached != nil {
		rs, err = s.detached.readRecords()
	}
	if err != nil && !rs.exited && !rs.initExited {
		return Exit{Code: 137, Signal: unix.SIGKILL}, fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	if s.cgroup.Load().oomKilled() {
		rs.oomKilled = true
		s.detached.noteOOM()
	}
	return rs.exit(s.id)
}

// finish releases everything, after the payload and the holder are gone.
func (s *running) finish() error {
	if s.stop != nil {
		s.stop()
	}
	err := errors.Join(failpoint.Hit("sandbox.finish.before-stubs"), s.takeBack())
	s.removeCgroup()
	s.detached.settled()
	s.pipes.closeOwn()
	s.detached.close()
	if s.master != nil && s.detached == nil {
		s.master.Close()
	}
	return err
}

// removeCgroup removes the cgroup for good: who changes limits at this moment makes no other.
func (s *running) removeCgroup() {
	s.limiting.Lock()
	defer s.limiting.Unlock()
	s.ended = true
	s.cgroup.Load().remove()
}

// takeBack leaves the root as the payload has, without what was made for it.
func (s *running) takeBack() error {
	var err error
	if s.undo != nil {
		err = s.undo()
	}
	s.stubs.remove()
	return err
}

// Pid is the payload's first process as den sees it.
func (s *running) Pid() int { return s.pid }

// Signal sends sig by way of the holder, which alone knows that the process id
// is still the payload's.
func (s *running) Signal(sig unix.Signal) error {
	if s.pipes.toHolder == nil { // it had ended before it was adopted
		return fmt.Errorf("sandbox %s: signal %d: %w", s.id, sig, os.ErrProcessDone)
	}
	if sig == unix.SIGKILL {
		defer s.cgroup.Load().thawForKill()
	}
	_, err := s.pipes.toHolder.Write(binary.LittleEndian.AppendUint64(nil, uint64(sig)))
	if errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("sandbox %s: signal %d: %w", s.id, sig, os.ErrProcessDone)
	}
	return err
}

// Terminal is the master of a detached sandbox's terminal; nil without one. Who reads it gets
// an error after the last byte of the payload, closes it then, and never before: it is the
// same file for all who ask.
func (s *running) Terminal() *os.File {
	if s.detached == nil {
		return nil
	}
	return s.master
}

// Resize sets the size of the terminal.
func (s *running) Resize(rows, cols uint16) error {
	if s.master == nil {
		return fmt.Errorf("sandbox %s: resize: no terminal", s.id)
	}
	c, err := s.master.SyscallConn()
	if err != nil {
		return fmt.Errorf("sandbox %s: resize: %w", s.id, err)
	}
	var ierr error
	err = c.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err := errors.Join(err, ierr); err != nil {
		return fmt.Errorf("sandbox %s: resize: %w", s.id, err)
	}
	return nil
}

// Wait returns how the payload ended.
func (s *running) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-s.done:
		return s.exit, s.err
	default:
	}
	select {
	case <-s.done:
		return s.exit, s.err
	case <-ctx.Done():
		return Exit{}, context.Cause(ctx)
	}
}
