package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// An opening is an endpoint's ports as den-net has them open.
type opening struct {
	ports   []Port
	closers []io.Closer
}

func (o *opening) Close() error { return closeAll(o.closers) }

// OpenPorts opens an endpoint's ports by side and returns them as assigned; closing the
// Closer ends them. It is for drivers without a den-net.
func OpenPorts(side Side, e *Endpoint) ([]Port, io.Closer, error) {
	o, err := openPorts(side, e)
	if err != nil {
		return nil, nil, err
	}
	return o.ports, o, nil
}

// openPorts opens all of an endpoint's ports or none.
func openPorts(side Side, e *Endpoint) (*opening, error) {
	o := &opening{}
	for _, p := range e.Ports {
		if err := o.add(side, e, p); err != nil {
			return nil, errors.Join(fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", e.Name, e.ID, err), o.Close())
		}
	}
	return o, nil
}

// add opens one port: the first of its range that is free on all its addresses.
func (o *opening) add(side Side, e *Endpoint, p Port) error {
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return errInvalid("port %d/%s: den publishes tcp and udp", p.Container, p.Protocol)
	}
	last := max(p.Host, p.HostEnd)
	for port := int(p.Host); ; port++ {
		sockets, at, err := listenOn(p, uint16(port))
		if err == nil {
			return o.forward(side, e, p, sockets, at)
		}
		if errors.Is(err, syscall.EACCES) {
			return fmt.Errorf("bind for %s failed: %w; ports below 1024 need CAP_NET_BIND_SERVICE here", hostPort(p.HostIP, uint16(port)), err)
		}
		if !errors.Is(err, syscall.EADDRINUSE) || port >= int(last) {
			to, _ := e.target(p)
			return fmt.Errorf("failed to bind host port for %s:%s/%s: %w", hostPort(p.HostIP, uint16(port)), to, p.Protocol, cause(err))
		}
	}
}

// cause is the errno, without the repetition of the address.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func hostPort(a netip.Addr, port uint16) string {
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(a, port).String()
}

// target is where the container takes the port: version 4, unless it has none.
func (e *Endpoint) target(p Port) (netip.AddrPort, error) {
	for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
		if a.IsValid() {
			return netip.AddrPortFrom(a.Addr(), p.Container), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("endpoint %s has no address", e.ID)
}

// forward connects open sockets with the container. On an error it closes them.
func (o *opening) forward(side Side, e *Endpoint, p Port, sockets []io.Closer, at []netip.AddrPort) error {
	to, err := e.target(p)
	if err != nil {
		return errors.Join(err, closeAll(sockets))
	}
	for i, s := range sockets {
		var c io.Closer
		switch s := s.(type) {
		case *net.TCPListener:
			c, err = side.Publish(s, to)
		case *net.UDPConn:
			c, err = side.PublishUDP(s, to)
		}
		if err != nil {
			return errors.Join(err, closeAll(sockets[i:]))
		}
		o.closers = append(o.closers, c)
		o.ports = append(o.ports, Port{Protocol: p.Protocol, Container: p.Container, HostIP: at[i].Addr(), Host: at[i].Port()})
	}
	return nil
}

// tries bounds the search for a port that is free in both families.
const tries = 32

// listenOn opens port on the addresses that p names; 0 is a free one.
func listenOn(p Port, port uint16) (sockets []io.Closer, at []netip.AddrPort, err error) {
	if p.HostIP.IsValid() {
		s, a, err := listenAt(p.Protocol, netip.AddrPortFrom(p.HostIP, port))
		return []io.Closer{s}, []netip.AddrPort{a}, err
	}
	for range tries {
		v4, a4, err := listenAt(p.Protocol, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		if err != nil {
			return nil, nil, err
		}
		v6, a6, err := listenAt(p.Protocol, netip.AddrPortFrom(netip.IPv6Unspecified(), a4.Port()))
		switch {
		case err == nil:
			return []io.Closer{v4, v6}, []netip.AddrPort{a4, a6}, nil
		case errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL):
			return []io.Closer{v4}, []netip.AddrPort{a4}, nil // no IPv6 here
		case port != 0 || !errors.Is(err, syscall.EADDRINUSE):
			return nil, nil, errors.Join(err, v4.Close())
		}
		if err := v4.Close(); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("no port is free on both 0.0.0.0 and [::]: %w", syscall.EADDRINUSE)
}

// listenAt opens one address; that of every IPv6 address takes no IPv4.
func listenAt(protocol string, a netip.AddrPort) (io.Closer, netip.AddrPort, error) {
	network := protocol + "4"
	if a.Addr().Is6() {
		network = protocol + "6" // sets IPV6_V6ONLY
	}
	if protocol == "tcp" {
		config := net.ListenConfig{KeepAlive: -1} // the container's sockets have their own mind
		l, err := config.Listen(context.Background(), network, a.String())
		if err != nil {
			return nil, a, err
		}
		return l, unmapped(l.Addr().(*net.TCPAddr).AddrPort()), nil
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			// Bursts come while the container's program is busy; the kernel gives what it allows.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		})
	}}
	c, err := config.ListenPacket(context.Background(), network, a.String())
	if err != nil {
		return nil, a, err
	}
	return c.(*net.UDPConn), unmapped(c.LocalAddr().(*net.UDPAddr).AddrPort()), nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
