package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A peer that is gone without a word (a sandbox that was killed takes its stack with
// it) is noticed after keepaliveIdle + keepaliveCount*keepaliveInterval, or after
// userTimeout while there is something to send.
const (
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 4
	userTimeout       = 2 * time.Minute
)

// A stackConn is a TCP connection to a container.
type stackConn struct {
	*gonet.TCPConn
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	gone chan struct{}
	once sync.Once
}

func newStackConn(ep tcpip.Endpoint, wq *waiter.Queue) *stackConn {
	ep.SocketOptions().SetDelayOption(false)
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval, timeout := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval), tcpip.TCPUserTimeoutOption(userTimeout)
	// None of these can fail on a TCP endpoint, and a connection without them still works.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	_ = ep.SetSockOpt(&timeout)
	return &stackConn{TCPConn: gonet.NewTCPConn(wq, ep), ep: ep, wq: wq, gone: make(chan struct{})}
}

// Close resets what is not yet finished: a relay closes when both directions have ended.
func (c *stackConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.TCPConn.Close()
}

// abort closes with a reset.
func (c *stackConn) abort() {
	c.once.Do(func() { close(c.gone) })
	c.ep.Abort()
}

// wait returns when Read would not block, so that silent connections need no buffer.
func (c *stackConn) wait() { waitReadable(c.ep, c.wq, c.gone) }

func waitReadable(ep tcpip.Endpoint, wq *waiter.Queue, gone <-chan struct{}) {
	const events = waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr
	if ep.Readiness(events) != 0 {
		return
	}
	entry, ready := waiter.NewChannelEntry(events)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if ep.Readiness(events) != 0 {
		return
	}
	select {
	case <-ready:
	case <-gone:
	}
}

// forwardTCP is told of every connection that a container begins to an address that
// nothing in the stack listens on. It is a goroutine of its own.
func (g *Gateway) forwardTCP(r *tcp.ForwarderRequest) {
	container := plain(r.ID().RemoteAddress)
	if !g.tcp.Take(container) {
		r.Complete(true) // a reset: what is refused outside is refused inside
		return
	}
	up, err := g.dialOutside(container, r.ID())
	if err != nil {
		g.tcp.Give(container)
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		g.tcp.Give(container)
		up.Close()
		r.Complete(true)
		return
	}
	r.Complete(false)
	down := newStackConn(ep, &wq)
	if !g.goes(func() { defer g.tcp.Give(container); g.relay(down, up) }) {
		g.tcp.Give(container)
		down.abort()
		up.Close()
	}
}

// dialOutside dials what a container asked for.
func (g *Gateway) dialOutside(container netip.Addr, id stack.TransportEndpointID) (*net.TCPConn, error) {
	to, ok := g.c.outside(plain(id.LocalAddress))
	if !ok {
		return nil, errRefused
	}
	if !g.dials.Take(container) {
		return nil, errFull
	}
	defer g.dials.Give(container)
	return g.dialTCP(netip.AddrPortFrom(to, id.LocalPort))
}

var (
	errRefused = errors.New("gateway: address refused")
	errFull    = errors.New("gateway: too many connections")
)

func (g *Gateway) dialTCP(to netip.AddrPort) (*net.TCPConn, error) {
	ctx, done, err := g.dialContext()
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := g.dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("dial %s: not a TCP connection", to)
	}
	return t, nil
}

// Dial connects to a container. from is the client's address, which the container sees if
// it can be told apart from the network's own; otherwise, and if it is not valid, the
// container sees the gateway's.
func (g *Gateway) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	return g.dialIn(ctx, from, to)
}

func (g *Gateway) dialIn(ctx context.Context, from netip.Addr, to netip.AddrPort) (*stackConn, error) {
	wq := &waiter.Queue{}
	ep, terr := g.stack.NewEndpoint(tcp.ProtocolNumber, protocol(to.Addr()), wq)
	if terr != nil {
		return nil, fmt.Errorf("dial container %s: %v", to, terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if from = g.Source(from, to.Addr()); from.IsValid() {
		terr = ep.Bind(fullAddress(netip.AddrPortFrom(from, 0)))
	}
	if terr == nil {
		terr = ep.Connect(fullAddress(to))
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, fmt.Errorf("dial container %s: %w", to, ctx.Err())
		}
	}
	if terr != nil {
		ep.Close()
		return nil, fmt.Errorf("dial container %s: %v", to, terr)
	}
	return newStackConn(ep, wq), nil
}

// Source is the address that a connection to a container comes from: the client's own,
// where the container's answer finds its way to the gateway, otherwise the gateway's.
func (g *Gateway) Source(client, container netip.Addr) netip.Addr {
	own, local := netip.Addr{}, false
	for _, p := range g.c.Addresses {
		if p.Addr().Is4() == container.Is4() && (!own.IsValid() || p.Masked().Contains(container)) {
			own = p.Addr()
		}
		local = local || p.Masked().Contains(client)
	}
	if !client.IsValid() || local || client.Is4() != container.Is4() || client.IsLoopback() || client.IsLinkLocalUnicast() || client.IsUnspecified() || client.IsMulticast() {
		return own
	}
	return client
}

// relay joins two connections until both directions have ended or one of the two
// failed.
func (g *Gateway) relay(in *stackConn, out *net.TCPConn) {
	both := &pair{in, out}
	if g.hold(both) != nil {
		return
	}
	defer g.forget(both)
	defer both.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.copyOut(out, in); err != nil {
			both.reset()
		}
	}()
	if err := g.copyIn(in, out); err != nil {
		both.reset()
	}
	<-done
}

// A pair is two ends of a relay.
type pair struct {
	in  *stackConn
	out *net.TCPConn
}

func (p *pair) Close() error { return errors.Join(p.in.Close(), p.out.Close()) }

// reset hands an error on: who reads the other end learns that not all came.
func (p *pair) reset() {
	p.in.abort()
	_ = p.out.SetLinger(0) // fails only on a socket that is closed already
	p.out.Close()
}

// copyOut copies what the container sends, and its end.
func (g *Gateway) copyOut(out *net.TCPConn, in *stackConn) error {
	for {
		in.wait()
		b := g.buffers.Take()
		n, err := in.Read(b[:])
		if n > 0 {
			if _, werr := out.Write(b[:n]); werr != nil {
				err = werr
			}
		}
		g.buffers.Give(b)
		if errors.Is(err, io.EOF) {
			return out.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// copyIn copies what comes for the container, and its end.
func (g *Gateway) copyIn(in *stackConn, out *net.TCPConn) error {
	raw, err := out.SyscallConn()
	if err != nil {
		return err
	}
	for {
		b, n, err := g.buffers.Receive(raw)
		if n > 0 {
			_, err = in.Write(b[:n])
		}
		g.buffers.Give(b)
		if err != nil {
			return err
		}
		if n == 0 {
			return in.CloseWrite()
		}
	}
}
