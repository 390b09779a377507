package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/network/datagram"
)

// dialTimeout bounds how long a container may take to accept.
const dialTimeout = 30 * time.Second

// A kernelSide reaches containers by the kernel: its process has a leg on the bridge.
type kernelSide struct {
	n       *Network
	device  string
	streams *Streams
	buffers datagram.Buffers
}

func openKernelSide(_ context.Context, _ string, n *Network) (Side, error) {
	return &kernelSide{n: n, device: bridgeName(n), streams: NewStreams()}, nil
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

// Publish is Side's.
func (k *kernelSide) Publish(l *net.TCPListener, to netip.AddrPort) (io.Closer, error) {
	return k.streams.Publish(l, to.Addr(), func(ctx context.Context, _ netip.Addr) (Stream, error) {
		d := net.Dialer{Timeout: dialTimeout}
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}), nil
}

// PublishUDP is Side's.
func (k *kernelSide) PublishUDP(c *net.UDPConn, to netip.AddrPort) (io.Closer, error) {
	p, err := datagram.Publish(c, func(netip.Addr) (datagram.Socket, error) {
		in, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return nil, err
		}
		return datagram.Kernel(in, &k.buffers)
	})
	if err != nil {
		return nil, fmt.Errorf("publish %s/udp: %w", to, err)
	}
	return p, nil
}
