package log

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxMove bounds what is moved at once, in bytes.
const maxMove = 1 << 20

// A Pump moves bytes from a pipe into a log until it is told to finish, or nobody
// has the other end any more.
type Pump struct {
	log    *Log
	stream Stream
	from   *os.File
	done   chan struct{}
	err    error
}

// Pump begins to move what arrives in from, the reading end of a pipe or a FIFO,
// open without blocking. Finish it.
func (l *Log) Pump(s Stream, from *os.File) (*Pump, error) {
	conn, err := from.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("container log: %w", err)
	}
	p := &Pump{log: l, stream: s, from: from, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		err := conn.Read(func(fd uintptr) bool { return p.drain(int(fd)) })
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
			p.err = fmt.Errorf("container log: %w", err)
		}
	}()
	return p, nil
}

// drain moves what is there; true says that nothing more can come.
func (p *Pump) drain(fd int) bool {
	for {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil {
			p.err = fmt.Errorf("container log: %w", err)
			return true
		}
		if n == 0 {
			return hungUp(fd)
		}
		if err := p.log.move(p.stream, fd, int64(n)); err != nil {
			p.err = err
			return true
		}
	}
}

// hungUp says that nobody can write to the empty pipe any more.
func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0 && fds[0].Revents&unix.POLLIN == 0
}

// Finish moves what is still there and ends. Nobody writes to the pipe any more.
func (p *Pump) Finish() error {
	// It wakes up the reader, which may be waiting for more.
	_ = p.from.SetReadDeadline(time.Unix(1, 0))
	<-p.done
	conn, err := p.from.SyscallConn()
	if err != nil {
		return errors.Join(p.err, err)
	}
	err = conn.Control(func(fd uintptr) { p.drain(int(fd)) })
	return errors.Join(p.err, err)
}

// Done is closed when nothing more can come.
func (p *Pump) Done() <-chan struct{} { return p.done }

// move moves up to n bytes that are in the pipe fd. What the log cannot take is dropped.
// The error is of the pipe.
func (l *Log) move(s Stream, fd int, n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.changed()
	room, err := l.room(min(n, maxMove))
	if err == nil {
		err = l.note(s)
	}
	if err != nil {
		return l.copy(fd, n, err)
	}
	if !l.copies {
		var moved int64
		moved, err = l.splice(fd, room)
		l.size += max(0, moved)
		if moved > 0 || errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			l.copies, err = true, nil
		}
	}
	return l.copy(fd, room, err)
}

func (l *Log) splice(fd int, n int64) (int64, error) {
	at := l.size
	for {
		moved, err := unix.Splice(fd, nil, int(l.current.data.Fd()), &at, int(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return moved, err
		}
	}
}

// copy reads bytes and writes them, or drops them where dropped says why.
func (l *Log) copy(fd int, n int64, dropped error) error {
	if l.buffer == nil {
		l.buffer = make([]byte, 64<<10)
	}
	got, err := unix.Read(fd, l.buffer[:min(n, int64(len(l.buffer)))])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	if dropped == nil {
		_, dropped = l.current.data.WriteAt(l.buffer[:got], l.size)
	}
	if dropped != nil {
		l.fail(errors.Join(dropped, l.current.data.Truncate(l.size)))
		return nil
	}
	l.size += int64(got)
	return nil
}
