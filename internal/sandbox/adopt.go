package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Adopt takes over the sandbox that was started with Detach dir. What its starter
// left undone when it was killed is done by who adopts: a payload that did not come to run
// is waited for, mount points and cgroups are removed after the end.
func (n *Namespaces) Adopt(ctx context.Context, id, dir string) (_ Sandbox, err error) {
	s := &running{id: id, n: n, stubs: &stubs{}, detached: &detached{}, pipes: &pipes{}, streams: &Streams{}, done: make(chan struct{})}
	defer func() {
		if err != nil {
			s.pipes.closeOwn()
			s.detached.close()
			if s.master != nil {
				s.master.Close()
			}
			err = fmt.Errorf("sandbox %s: adopt: %w", id, err)
		}
	}()
	st, err := s.reopen(dir)
	if err != nil {
		return nil, err
	}
	rs, err := s.detached.readRecords()
	if err != nil {
		return nil, err
	}
	alive, err := s.reconnect()
	if err != nil {
		return nil, err
	}
	if !alive || rs.pid == 0 {
		// Its starter was killed before there was a payload, and the holder is about to end, or it has.
		alive = false
		if err := drain(ctx, s.pipes.fromHolder); err != nil {
			return nil, err
		}
		if rs, err = s.detached.readRecords(); err != nil {
			return nil, err
		}
		if !rs.exited && !rs.initExited {
			return nil, errors.Join(fmt.Errorf("it did not run, or ended without a trace: %w", fs.ErrNotExist), s.finish())
		}
	} else if err := sameNamespaces(st); err != nil {
		return nil, err
	}
	s.holder, s.pid = rs.holder, rs.pid
	if alive && st.Terminal {
		if err := s.takeOver(ctx); err != nil {
			return nil, err
		}
	}
	s.run()
	return s, nil
}

// reopen reads what is in the directory of a detached sandbox.
func (s *running) reopen(dir string) (*detachState, error) {
	d := s.detached
	var err error
	if d.dir, err = os.Open(dir); err != nil {
		return nil, err
	}
	b, err := readBounded(filepath.Join(dir, fileState))
	if err != nil {
		return nil, err
	}
	if d.records, err = os.OpenFile(filepath.Join(dir, fileRecords), os.O_RDWR|os.O_APPEND, 0); err != nil {
		return nil, err // none: it was not started
	}
	st := &detachState{}
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileState), err)
	}
	s.stubs.root = st.Root
	if f, err := os.Open(filepath.Join(dir, fileMade)); err == nil {
		s.stubs.made, s.stubs.copied = readMade(f)
		f.Close()
	}
	s.filter = st.Filter
	if st.FilterFor != nil {
		s.seccomp = &specs.LinuxSeccomp{DefaultAction: *st.FilterFor, Flags: st.FilterFlags}
	}
	noted, err := d.cgroupNoted(st)
	if err == nil && len(noted.Paths) > 0 {
		var c *cgroup
		if c, err = oldCgroup(s.id, noted.Version, noted.Paths); err == nil {
			s.cgroup.Store(c)
		}
	}
	return st, err
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxStateBytes))
}

// readRecords reads all that the holder has written so far.
func (d *detached) readRecords() (rs records, err error) {
	f, err := os.Open(filepath.Join(d.dir.Name(), fileRecords))
	if err != nil {
		return rs, err
	}
	defer f.Close()
	return rs, rs.read(f)
}

// reconnect opens the pipes; alive says that there is a holder. Whether there is one says the
// kernel, so that no process id can be mistaken for another's.
func (s *running) reconnect() (alive bool, err error) {
	d := s.detached
	if s.pipes.fromHolder, err = d.pipe(fileAlive, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		return false, ignoreMissing(err)
	}
	s.pipes.toHolder, err = d.pipe(fileControl, unix.O_WRONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENXIO) { // nobody reads it
		return false, nil
	}
	return err == nil, ignoreMissing(err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// drain reads until the end.
func drain(ctx context.Context, f *os.File) error {
	if f == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })
	defer stop()
	_, err := io.Copy(io.Discard, f)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sameNamespaces refuses a sandbox whose process ids or users mean something else here.
func sameNamespaces(st *detachState) error {
	pid, user, err := ownNamespaces()
	switch {
	case err != nil:
		return err
	case pid != st.PidNamespace:
		return fmt.Errorf("it runs in another pid namespace, of another container%w", hidden{errdefs.ErrFailedPrecondition})
	case user != st.UserNamespace:
		return fmt.Errorf("it runs in another user namespace, which this process has not joined%w", hidden{errdefs.ErrFailedPrecondition})
	}
	return nil
}

// takeTimeout bounds how long the holder may take to hand over the terminal, in milliseconds.
const takeTimeout = 30_000

// takeOver asks the holder for the terminal: it sends the master to whoever has bound
// the socket when it gets a signal, even 0. That needs no right to look into the
// holder, unlike pidfd_getfd(2). It sends none if it is about to end.
func (s *running) takeOver(ctx context.Context) error {
	d := s.detached
	_ = unix.Unlinkat(int(d.dir.Fd()), fileTake, 0)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	p := &pipes{received: os.NewFile(uintptr(fd), "descriptor socket")}
	defer p.received.Close()
	// A socket's address has room for 108 bytes.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: procPath(int(d.dir.Fd())) + "/" + fileTake}); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	defer func() { _ = unix.Unlinkat(int(d.dir.Fd()), fileTake, 0) }()
	if _, err := s.pipes.toHolder.Write(make([]byte, 8)); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("terminal: %w", err)
	}
	aliveFd, err := filesFd(s.pipes.fromHolder)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(aliveFd)}}
		n, err := unix.Poll(fds, takeTimeout)
		switch {
		case errors.Is(err, unix.EINTR) && ctx.Err() == nil:
			continue
		case err != nil:
			return fmt.Errorf("terminal: %w", err)
		case n == 0:
			return errors.New("terminal: the holder did not hand it over")
		}
		s.master, err = p.receive(terminalName) // nil: the holder has ended
		return err
	}
}

// oldCgroup is the cgroup of a sandbox that another process has started.
func oldCgroup(id string, version int, paths map[string]string) (*cgroup, error) {
	m, err := newCgroupManager(version, filepath.Base(anyValue(paths)), paths)
	if err != nil {
		return nil, err
	}
	return &cgroup{r: &Request{ID: id}, m: m, v: version}, nil
}

func anyValue(m map[string]string) string {
	for _, v := range m {
		return v
	}
	return ""
}

// record is one record as the holder writes it.
func record(kind, value uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, kind), value)
}
