package datagram

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Socket is a socket that is connected to one other.
type Socket interface {
	// Send sends a datagram, which may get lost. The error says that nobody listens there.
	Send(b []byte) error
	// Each calls f with each datagram that comes, until the socket is closed, nobody
	// listens at the other end, or f fails.
	Each(f func(b []byte) error) error
	// Close may be called more than once.
	Close() error
}

// A kernelSocket is the kernel's.
type kernelSocket struct {
	c       *net.UDPConn
	raw     syscall.RawConn
	buffers *Buffers
}

// Kernel returns c as a Socket, which takes its buffers from buffers.
func Kernel(c *net.UDPConn, buffers *Buffers) (Socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &kernelSocket{c, raw, buffers}, nil
}

func (s *kernelSocket) Close() error { return s.c.Close() }

func (s *kernelSocket) Send(b []byte) error {
	_, err := s.c.Write(b)
	return refusal(err)
}

// refusal is err if it says that nobody listens there; other errors lose a datagram, as networks do.
func refusal(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *kernelSocket) Each(f func(b []byte) error) error {
	for {
		b, n, err := s.buffers.Receive(s.raw)
		if err == nil {
			err = f(b[:n])
		} else {
			err = refusal(err)
		}
		s.buffers.Give(b)
		if err != nil {
			return err
		}
	}
}
