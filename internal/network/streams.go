package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"den/internal/network/share"
)

// maxConnections is what one den-net carries through kernel sockets at a time, which its
// containers share (see share).
const maxConnections = 16384

// A Stream is a connection whose two directions end apart.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Streams carries connections that come to published ports on to containers.
type Streams struct{ slots *share.Slots[netip.Addr] }

// NewStreams returns one that carries as much as a den-net may.
func NewStreams() *Streams { return &Streams{share.New[netip.Addr](maxConnections)} }

// Publish hands each connection that l accepts to what dial opens at container for its
// client. The Closer, which owns l, ends the port and all that came by it.
func (s *Streams) Publish(l *net.TCPListener, container netip.Addr, dial func(ctx context.Context, client netip.Addr) (Stream, error)) io.Closer {
	f := newForwarding(l)
	f.work.Go(func() {
		for pause := time.Duration(0); ; {
			c, err := l.AcceptTCP()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil: // no descriptors, say: clients wait in the kernel's queue meanwhile
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				select {
				case <-f.ctx.Done():
				case <-time.After(pause):
				}
			default:
				pause = 0
				f.work.Go(func() { s.carry(f, c, container, dial) })
			}
		}
	})
	return f
}

// carry carries one connection of a client.
func (s *Streams) carry(f *forwarding, c *net.TCPConn, container netip.Addr, dial func(context.Context, netip.Addr) (Stream, error)) {
	defer func() { _ = c.Close() }()
	if !s.slots.Take(container) {
		_ = c.SetLinger(0) // Close is a reset: try again
		return
	}
	defer s.slots.Give(container)
	in, err := dial(f.ctx, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
	if err != nil {
		_ = c.SetLinger(0) // what a closed port says, as well as it can be said after accept
		return
	}
	if !f.hold(in) || !f.hold(c) {
		_ = in.Close()
		return
	}
	defer f.drop(c)
	defer f.drop(in)
	relay(c, in)
}

// relay copies both ways until both have ended. Whoever breaks off one way breaks both.
func relay(a, b Stream) {
	var work sync.WaitGroup
	for _, way := range [][2]Stream{{a, b}, {b, a}} {
		work.Go(func() {
			from, to := way[0], way[1]
			if _, err := io.Copy(to, from); err != nil { // spliced by the kernel, if both are its
				breakOff(a)
				breakOff(b)
				return
			}
			_ = to.CloseWrite()
		})
	}
	work.Wait()
}

// breakOff closes a connection so that its other end learns that not all came.
func breakOff(s Stream) {
	if t, ok := s.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // Close is a reset then; others' always is, before both directions have ended
	}
	_ = s.Close()
}

// A forwarding is one open port: its listener and what came through it.
type forwarding struct {
	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex
	open   map[io.Closer]struct{} // nil once closed
	work   sync.WaitGroup
}

func newForwarding(listener io.Closer) *forwarding {
	ctx, cancel := context.WithCancel(context.Background())
	return &forwarding{ctx: ctx, cancel: cancel, open: map[io.Closer]struct{}{listener: {}}}
}

// hold makes Close close c, and closes it now if that has happened.
func (f *forwarding) hold(c io.Closer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		_ = c.Close()
		return false
	}
	f.open[c] = struct{}{}
	return true
}

func (f *forwarding) drop(c io.Closer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
	_ = c.Close()
}

// Close ends all and waits until nothing is left.
func (f *forwarding) Close() error {
	f.cancel()
	f.mu.Lock()
	open := f.open
	f.open = nil
	f.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
	f.work.Wait()
	return nil
}
