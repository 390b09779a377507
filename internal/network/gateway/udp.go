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

	"den/internal/network/datagram"
)

// udpBufferBytes bounds what waits for a flow in the stack, either way.
const udpBufferBytes = 256 << 10

// A flowKey names a flow that a container began.
type flowKey struct{ from, to netip.AddrPort }

// A socket is one of the stack that is connected to one of a container: datagram.Socket.
type socket struct {
	ep      tcpip.Endpoint
	wq      *waiter.Queue
	buffers *datagram.Buffers
	gone    chan struct{}
	once    sync.Once
}

func (g *Gateway) newSocket(ep tcpip.Endpoint, wq *waiter.Queue) *socket {
	ep.SocketOptions().SetReceiveBufferSize(udpBufferBytes, true)
	ep.SocketOptions().SetSendBufferSize(udpBufferBytes, true)
	return &socket{ep: ep, wq: wq, buffers: &g.buffers, gone: make(chan struct{})}
}

// Close ends the socket and whoever waits in it.
func (s *socket) Close() error {
	s.once.Do(func() {
		close(s.gone)
		s.ep.Close()
	})
	return nil
}

// Send is Socket's. It waits for nothing: what does not fit behind others that wait for the
// container's link address is lost. Nor does it tell of refusals: others can send them, too.
func (s *socket) Send(b []byte) error {
	_, _ = s.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{})
	return nil
}

// Each is Socket's.
func (s *socket) Each(f func([]byte) error) error {
	for {
		waitReadable(s.ep, s.wq, s.gone)
		select {
		case <-s.gone:
			return net.ErrClosed
		default:
		}
		b := s.buffers.Take()
		w := tcpip.SliceWriter(b[:])
		r, terr := s.ep.Read(&w, tcpip.ReadOptions{})
		var err error
		switch terr.(type) {
		case nil:
			err = f(b[:r.Count])
		case *tcpip.ErrClosedForReceive:
			err = net.ErrClosed
		default: // would block, or an ICMP error that somebody sent
		}
		s.buffers.Give(b)
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
	if g.broadcast(k.to.Addr()) || g.outward.Flow(k) != nil {
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
	f := &datagram.Flow{Owner: k.from.Addr(), In: g.newSocket(ep, &wq), Out: up}
	if g.outward.Add(k, f) && !g.goes(func() { g.flowOut(k, f, up) }) {
		f.End()
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
func (g *Gateway) dialUDP(to netip.AddrPort) (datagram.Socket, error) {
	c, err := g.dial(context.Background(), "udp", to.String())
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("dial %s: not a UDP socket", to)
	}
	return datagram.Kernel(u, &g.buffers)
}

// flowOut carries one flow of a container until it is silent for long, or refused.
func (g *Gateway) flowOut(k flowKey, f *datagram.Flow, up datagram.Socket) {
	defer g.outward.Remove(k, f)
	defer f.End()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.End()
		g.refused(k, f.In.Each(func(b []byte) error {
			f.Touch()
			return up.Send(b)
		}))
	}()
	g.refused(k, up.Each(func(b []byte) error {
		f.Touch()
		return f.In.Send(b)
	}))
	f.End()
	<-done
}

// refused tells the container that its flow has no other end.
func (g *Gateway) refused(k flowKey, err error) {
	if errors.Is(err, unix.ECONNREFUSED) {
		g.unreachable(k)
	}
}
