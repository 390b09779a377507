package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The bounds of what one den-net carries through kernel sockets.
const (
	maxConnections = 8192
	dialTimeout    = 30 * time.Second
)

// A kernelSide reaches containers by the kernel: its process has a leg on the bridge.
type kernelSide struct {
	n      *Network
	device string
	slots  chan struct{}
}

func openKernelSide(_ context.Context, _ string, n *Network) (Side, error) {
	return &kernelSide{n: n, device: bridgeName(n), slots: make(chan struct{}, maxConnections)}, nil
}

// config binds sockets to the bridge, so that they are no way in from elsewhere.
func (k *kernelSide) config() net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, k.device)
		}), err)
	}}
}

// Listen is Side's.
func (k *kernelSide) Listen(port uint16) ([]net.Listener, error) {
	var ls []net.Listener
	config := k.config()
	for _, a := range k.n.Gateways() {
		l, err := config.Listen(context.Background(), "tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			return nil, errors.Join(err, closeAll(ls))
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// ListenPacket is Side's.
func (k *kernelSide) ListenPacket(port uint16) ([]net.PacketConn, error) {
	var cs []net.PacketConn
	config := k.config()
	for _, a := range k.n.Gateways() {
		c, err := config.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			return nil, errors.Join(err, closeAll(cs))
		}
		cs = append(cs, c)
	}
	return cs, nil
}

func closeAll[C io.Closer](cs []C) error {
	var err error
	for _, c := range cs {
		err = errors.Join(err, c.Close())
	}
	return err
}

// Namespace is Side's: the bridge is where den-net is.
func (k *kernelSide) Namespace() *os.File { return nil }

// Close is Side's.
func (k *kernelSide) Close() error { return nil }

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

// Publish is Side's.
func (k *kernelSide) Publish(l *net.TCPListener, to netip.AddrPort) (io.Closer, error) {
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
				f.work.Go(func() { k.carry(f, c, to) })
			}
		}
	})
	return f, nil
}

// carry carries one connection of a client.
func (k *kernelSide) carry(f *forwarding, c *net.TCPConn, to netip.AddrPort) {
	defer func() { _ = c.Close() }()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	default:
		_ = c.SetLinger(0) // Close is a reset: try again
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(f.ctx, "tcp", to.String())
	if err != nil {
		_ = c.SetLinger(0) // what a closed port says, as well as it can be said after accept
		return
	}
	in := conn.(*net.TCPConn)
	if !f.hold(in) || !f.hold(c) {
		_ = in.Close()
		return
	}
	defer f.drop(c)
	defer f.drop(in)
	relay(c, in)
}

// relay copies both ways until both have ended. Whoever breaks off one way breaks both.
func relay(a, b *net.TCPConn) {
	var work sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		work.Go(func() {
			from, to := way[0], way[1]
			if _, err := io.Copy(to, from); err != nil { // spliced by the kernel
				_, _ = a.SetLinger(0), b.SetLinger(0)
				_, _ = a.Close(), b.Close()
				return
			}
			_ = to.CloseWrite()
		})
	}
	work.Wait()
}

// PublishUDP is Side's.
func (k *kernelSide) PublishUDP(c *net.UDPConn, to netip.AddrPort) (io.Closer, error) {
	t, err := newDatagrams(c, to)
	if err != nil {
		return nil, fmt.Errorf("publish %s/udp: %w", to, err)
	}
	return t, nil
}
