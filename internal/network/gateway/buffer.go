package gateway

import (
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferBytes holds the largest datagram, and the sum of what a socket had waiting.
const bufferBytes = 128 << 10

type buffer [bufferBytes]byte

// A bufferPool lends buffers to those who have something to put in, so that silent
// flows cost none.
type bufferPool struct{ p sync.Pool }

var buffers bufferPool

func (p *bufferPool) take() *buffer {
	if b, ok := p.p.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func (p *bufferPool) give(b *buffer) { p.p.Put(b) }

// receive waits for bytes or a datagram of a kernel socket and takes a buffer when they
// are there. The caller gives the buffer back if it is not nil.
func receive(raw syscall.RawConn) (b *buffer, n int, err error) {
	closed := raw.Read(func(fd uintptr) bool {
		b = buffers.take()
		for {
			n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			buffers.give(b)
			b, n = nil, 0
			return false
		}
		return true
	})
	if closed != nil {
		return b, 0, closed
	}
	return b, max(n, 0), err
}
