package sentry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// A house is a sentry in use, by one sandbox or by several that share its network stack. It ends with the last.
type house struct {
	*child

	mu    sync.Mutex
	users int

	ends      context.Context // ended by the last one
	last      context.CancelFunc
	gathering sync.WaitGroup
}

// newHouse is a sentry with one sandbox.
func newHouse(c *child) *house {
	h := &house{child: c, users: 1}
	h.ends, h.last = context.WithCancel(context.Background())
	return h
}

// gather gathers the sentry's threads until it ends, unless the request chose its processors.
func (h *house) gather(chosen *unix.CPUSet) {
	var every unix.CPUSet
	if chosen != nil || !gathers() || unix.SchedGetaffinity(0, &every) != nil || every.Count() < 2 {
		return
	}
	h.gathering.Go(func() { gather(h.pid, &every, new(gathering).look, h.ends.Done()) })
}

// join counts one more sandbox, unless the sentry ends.
func (h *house) join() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.users == 0 {
		return false
	}
	h.users++
	return true
}

// leave ends the sentry with its last sandbox; before that it waits until the sentry has given back
// what one that has ended had. drop is called when nothing of the sandbox is used any more.
func (h *house) leave(control *os.File, drop func()) {
	h.mu.Lock()
	if h.users > 0 {
		h.users--
	}
	last := h.users == 0
	h.mu.Unlock()
	switch {
	case last:
		h.last()
		h.gathering.Wait()
		h.kill()
		drop()
		h.end()
	case control != nil:
		hangUp(control)
		if !gone(control) && control == h.control { // then the sentry has ended meanwhile
			_, _ = h.wait()
		}
		drop()
	default:
		drop()
	}
	if control != nil && control != h.control {
		control.Close()
	}
}

// gone waits for the last word about a sandbox, or until nothing more is said.
func gone(control *os.File) bool {
	for {
		var e event
		if decode(control, &e) != nil {
			return false
		}
		if e.Gone {
			return true
		}
	}
}

// cancel ends a sandbox without a word, and the sentry if it has no other.
func (h *house) cancel(control *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.users <= 1 {
		h.users = 0 // nobody joins any more
		h.kill()
		return
	}
	hangUp(control)
}

// hangUp tells the other end of a socket that nothing more comes.
func hangUp(socket *os.File) {
	conn, err := socket.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// joined is the sandbox whose sentry r is to run in, or nil.
func joined(r *sandbox.Request) (*running, error) {
	with := r.NetworkOf
	for _, other := range []sandbox.Sandbox{r.IPCOf, r.PIDsOf} {
		if other != nil && other != with {
			return nil, fmt.Errorf("ipc or process ids of another sandbox without its network: on this rung both are of one kernel: %w", errdefs.ErrNotImplemented)
		}
	}
	if with == nil {
		return nil, nil //nolint:nilnil // it joins nobody
	}
	s, ok := with.(*running)
	if !ok {
		return nil, fmt.Errorf("the network of a sandbox that another executor runs: %w", errdefs.ErrInvalidArgument)
	}
	return s, nil
}

// board sends the request to the sentry that with runs in.
func (s *running) board(b *builder, with *running) error {
	if !with.sentry.join() {
		return os.ErrProcessDone
	}
	s.sentry = with.sentry
	l, err := with.dial()
	if err != nil {
		return err
	}
	s.control = l.socket
	if len(b.shares) > 0 {
		if s.gofer, err = startGofer(b.shares, b.socks); err != nil {
			return err
		}
	}
	return l.send(&command{Start: &b.out}, b.files)
}

// limitless takes out of the request what is the sentry's, and not the sandbox's that joins it.
func (b *builder) limitless() {
	if b.out.MaxMemoryBytes > 0 || b.quota > 0 || b.processors != nil {
		b.warn("limits of memory and processors are not in force: on this rung those of the container whose network this one has joined hold for both")
	}
	b.out.MaxMemoryBytes, b.quota, b.processors, b.out.Processors = 0, 0, nil, 0
}

// lost is the error of a start in a sentry with others, which does not answer any more.
func (s *running) lost(err error) error {
	if errors.Is(asDone(err), os.ErrProcessDone) {
		return os.ErrProcessDone
	}
	return err
}
