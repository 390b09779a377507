package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpBufferBytes bounds what waits for a flow in the stack, either way.
const udpBufferBytes = 256 << 10

// A flowKey names a flow that a container began.
type flowKey struct{ from, to netip.AddrPort }

// A datagrams is a UDP socket of the stack that is connected to one socket of a container.
type datagrams struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	gone chan struct{}
	once sync.Once
}

func newDatagrams(ep tcpip.Endpoint, wq *waiter.Queue) *datagrams {
	ep.SocketOptions().SetReceiveBufferSize(udpBufferBytes, true)
	ep.SocketOptions().SetSendBufferSize(udpBufferBytes, true)
	return &datagrams{ep: ep, wq: wq, gone: make(chan struct{})}
}

// Close ends the socket and whoever waits in it.
func (d *datagrams) Close() error {
	d.once.Do(func() {
		close(d.gone)
		d.ep.Close()
	})
	return nil
}

// send sends one datagram. It waits for nothing: what does not fit behind others
// that wait for the container's link address is lost, as datagrams may be.
func (d *datagrams) send(b []byte) {
	_, _ = d.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{})
}

// each calls f with what the container sends until the socket is closed.
func (d *datagrams) each(f func([]byte) error) error {
	for {
		waitReadable(d.ep, d.wq, d.gone)
		select {
		case <-d.gone:
			return net.ErrClosed
		default:
		}
		b := buffers.take()
		w := tcpip.SliceWriter(b[:])
		r, terr := d.ep.Read(&w, tcpip.ReadOptions{})
		var err error
		switch terr.(type) {
		case nil:
			err = f(b[:r.Count])
		case *tcpip.ErrClosedForReceive:
			err = net.ErrClosed
		default: // would block, or an ICMP error that somebody sent
		}
		buffers.give(b)
		if err != nil {
			return err
		}
	}
}

// forwardUDP is told of every datagram that belongs to no flow yet. It answers false
// for the stack to say that the port is unreachable.
func (g *Gateway) forwardUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	k := flowKey{
		netip.AddrPortFrom(plain(id.RemoteAddress), id.RemotePort),
		netip.AddrPortFrom(plain(id.LocalAddress), id.LocalPort),
	}
	if g.broadcast(k.to.Addr()) || g.outward.get(k) != nil {
		return true
	}
	to, ok := g.c.outside(k.to.Addr())
	if !ok {
		return false
	}
	up, err := g.dialUDP(netip.AddrPortFrom(to, k.to.Port()))
	if err != nil {
		return false
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		up.Close()
		return true
	}
	down := newDatagrams(ep, &wq)
	f := &flow{in: down, close: func() { down.Close(); up.Close() }}
	g.outward.add(k, f)
	if !g.goes(func() { g.flowOut(k, f, up) }) {
		f.end()
	}
	return true
}

// broadcast reports whether a is for many; nobody outside is asked then, and no error is sent.
func (g *Gateway) broadcast(a netip.Addr) bool {
	if a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return true
	}
	for _, p := range g.c.Addresses {
		if a.Is4() && p.Masked().Contains(a) && a == lastAddress(p) {
			return true
		}
	}
	return false
}

// lastAddress is the highest address of an IPv4 prefix.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// dialUDP connects a socket; that sends nothing and waits for nobody.
func (g *Gateway) dialUDP(to netip.AddrPort) (*net.UDPConn, error) {
	c, err := g.dial(context.Background(), "udp", to.String())
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("dial %s: not a UDP socket", to)
	}
	return u, nil
}

// A closer is a function as something to close.
type closer struct{ f func() }

func (c *closer) Close() error {
	c.f()
	return nil
}

// flowOut carries one flow of a container until it is idle for udpIdle, or refused.
func (g *Gateway) flowOut(k flowKey, f *flow, up *net.UDPConn) {
	c := &closer{f.end}
	defer g.outward.remove(k, f)
	defer f.end()
	if g.hold(c) != nil {
		return
	}
	defer g.forget(c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.end()
		g.refused(k, f.in.each(func(b []byte) error {
			f.touch()
			_, err := up.Write(b)
			return refusal(err)
		}))
	}()
	g.refused(k, answers(up, f, f.in.send))
	f.end()
	<-done
}

// refusal is err if it says that nobody listens there; other errors lose a datagram, as networks do.
func refusal(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// refused tells the container that its flow has no other end.
func (g *Gateway) refused(k flowKey, err error) {
	if errors.Is(err, unix.ECONNREFUSED) {
		g.unreachable(k)
	}
}

// answers calls put with every datagram that comes on c, until c is closed.
func answers(c *net.UDPConn, f *flow, put func([]byte)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for {
		b, n, err := receive(raw)
		if err == nil {
			f.touch()
			put(b[:n])
		}
		if b != nil {
			buffers.give(b)
		}
		if err != nil {
			return err
		}
	}
}
