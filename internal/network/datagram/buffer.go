package datagram

import (
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferBytes holds the largest datagram, and the sum of what a socket had waiting.
const bufferBytes = 128 << 10

// A Buffer holds a datagram, or what a connection had waiting.
type Buffer [bufferBytes]byte

// Buffers lend buffers to those who have something to put in, so that silent flows
// and connections cost none. The zero value is ready.
type Buffers struct{ p sync.Pool }

// Take lends a buffer.
func (p *Buffers) Take() *Buffer {
	if b, ok := p.p.Get().(*Buffer); ok {
		return b
	}
	return new(Buffer)
}

// Give takes back a buffer; nil is none.
func (p *Buffers) Give(b *Buffer) {
	if b != nil {
		p.p.Put(b)
	}
}

// Receive waits for bytes or a datagram of a kernel socket and takes a buffer when they
// are there. The caller gives back what comes.
func (p *Buffers) Receive(raw syscall.RawConn) (b *Buffer, n int, err error) {
	closed := raw.Read(func(fd uintptr) bool {
		b = p.Take()
		for {
			n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			p.Give(b)
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
