package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"den/internal/network/datagram"
)

// A publication is a port outside that leads to a container. Close ends its
// listener and all that came through it.
type publication struct {
	g    *Gateway
	to   netip.AddrPort
	mu   sync.Mutex
	open map[io.Closer]struct{} // nil once closed
	work sync.WaitGroup
}

func (g *Gateway) newPublication(to netip.AddrPort, listener io.Closer) (*publication, error) {
	p := &publication{g: g, to: to, open: map[io.Closer]struct{}{listener: {}}}
	if err := g.hold(p); err != nil {
		listener.Close()
		return nil, err
	}
	return p, nil
}

// Close ends the publication and waits until nothing of it is left.
func (p *publication) Close() error {
	p.mu.Lock()
	open := p.open
	p.open = nil
	p.mu.Unlock()
	var err error
	for c := range open {
		err = errors.Join(err, c.Close())
	}
	p.work.Wait()
	p.g.forget(p)
	return err
}

// serve runs f with c, which Close closes. After Close it closes c itself.
func (p *publication) serve(c io.Closer, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		c.Close()
		return
	}
	p.open[c] = struct{}{}
	p.work.Go(func() {
		f()
		p.mu.Lock()
		delete(p.open, c)
		p.mu.Unlock()
		c.Close()
	})
}

// A reset is a connection whose Close says that not all of it arrived.
type reset struct{ *net.TCPConn }

func (r reset) Close() error {
	_ = r.SetLinger(0) // fails only on a socket that is closed already
	_ = r.TCPConn.Close()
	return nil
}

// Publish hands connections that l accepts to a container's port, with the client's
// address as Dial's. It owns l.
func (g *Gateway) Publish(l *net.TCPListener, to netip.AddrPort) (io.Closer, error) {
	p, err := g.newPublication(to, l)
	if err != nil {
		return nil, err
	}
	p.work.Go(func() {
		for pause := time.Duration(0); ; {
			c, err := l.AcceptTCP()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil: // no descriptors, say: the client waits in the queue meanwhile
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				time.Sleep(pause)
			default:
				pause = 0
				p.serve(reset{c}, func() { p.connect(c) })
			}
		}
	})
	return p, nil
}

// connect carries one connection.
func (p *publication) connect(c *net.TCPConn) {
	if !p.g.tcp.Take(p.to.Addr()) {
		_ = reset{c}.Close()
		return
	}
	defer p.g.tcp.Give(p.to.Addr())
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	in, err := p.g.dialIn(ctx, addrPort(c.RemoteAddr()).Addr(), p.to)
	cancel()
	if err != nil {
		_ = reset{c}.Close()
		return
	}
	p.g.relay(in, c)
}

// PublishUDP hands datagrams that come on c to a container's port, one flow for each
// client, and answers back. It owns c.
func (g *Gateway) PublishUDP(c *net.UDPConn, to netip.AddrPort) (io.Closer, error) {
	p, err := datagram.Publish(c, func(client netip.Addr) (datagram.Socket, error) { return g.dialInUDP(client, to) })
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	u := &udpPublication{p, g}
	if err := g.hold(u); err != nil {
		return nil, err
	}
	return u, nil
}

// A udpPublication is a publication of datagrams, which ends with the gateway.
type udpPublication struct {
	io.Closer
	g *Gateway
}

func (p *udpPublication) Close() error {
	p.g.forget(p)
	return p.Closer.Close()
}

// dialInUDP connects a socket of the stack to a container's.
func (g *Gateway) dialInUDP(from netip.Addr, to netip.AddrPort) (datagram.Socket, error) {
	wq := &waiter.Queue{}
	ep, terr := g.stack.NewEndpoint(udp.ProtocolNumber, protocol(to.Addr()), wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	if from = g.Source(from, to.Addr()); from.IsValid() {
		terr = ep.Bind(fullAddress(netip.AddrPortFrom(from, 0)))
	}
	if terr == nil {
		terr = ep.Connect(fullAddress(to))
	}
	if terr != nil {
		ep.Close()
		return nil, errors.New(terr.String())
	}
	return g.newSocket(ep, wq), nil
}

// Listen accepts connections to a port of each of the gateway's own addresses, for
// what runs in this process: DNS.
func (g *Gateway) Listen(port uint16) ([]net.Listener, error) {
	var ls []net.Listener
	for _, a := range g.c.Addresses {
		l, err := gonet.ListenTCP(g.stack, fullAddress(netip.AddrPortFrom(a.Addr(), port)), protocol(a.Addr()))
		if err != nil {
			return nil, errors.Join(err, closeAll(ls))
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// ListenPacket is Listen for datagrams.
func (g *Gateway) ListenPacket(port uint16) ([]net.PacketConn, error) {
	var cs []net.PacketConn
	for _, a := range g.c.Addresses {
		at := fullAddress(netip.AddrPortFrom(a.Addr(), port))
		c, err := gonet.DialUDP(g.stack, &at, nil, protocol(a.Addr()))
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
