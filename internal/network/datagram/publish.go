package datagram

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A route is what tells the flows of a published port apart: who wrote, and to which
// address of the socket, as a message of control that answers from there.
type route struct {
	client netip.AddrPort
	local  string
}

// A publication is a published port.
type publication struct {
	c     *net.UDPConn
	dial  func(client netip.Addr) (Socket, error)
	flows *Flows[route]
	work  sync.WaitGroup
}

// Publish hands datagrams that come on c to what dial opens for their client, and answers
// back. The Closer, which owns c, ends the port and all its flows.
func Publish(c *net.UDPConn, dial func(client netip.Addr) (Socket, error)) (io.Closer, error) {
	return publish(c, dial, MaxFlows, Idle)
}

func publish(c *net.UDPConn, dial func(client netip.Addr) (Socket, error), limit int, idle time.Duration) (*publication, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_INET6 {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	p := &publication{c: c, dial: dial, flows: NewFlows[route](limit, idle)}
	p.work.Go(p.receive)
	return p, nil
}

// Close ends the port and waits until nothing of it is left.
func (p *publication) Close() error {
	p.flows.Close()
	err := p.c.Close()
	p.work.Wait()
	return err
}

func (p *publication) receive() {
	b, control := new(Buffer), make([]byte, 256)
	for {
		n, m, _, client, err := p.c.ReadMsgUDPAddrPort(b[:], control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		f := p.flow(route{netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), string(answerFrom(control[:m]))})
		if f == nil {
			continue
		}
		f.Touch()
		if errors.Is(f.In.Send(b[:n]), unix.ECONNREFUSED) {
			_ = f.In.Send(b[:n]) // that was about an earlier one, before the program was there
		}
	}
}

// flow finds the flow of r, or begins one.
func (p *publication) flow(r route) *Flow {
	if f := p.flows.Flow(r); f != nil {
		return f
	}
	in, err := p.dial(r.client.Addr())
	if err != nil {
		return nil // a datagram is lost
	}
	f := &Flow{Owner: r.client.Addr(), In: in}
	if !p.flows.Add(r, f) {
		return nil
	}
	p.work.Go(func() { p.answer(r, f) })
	return f
}

// answer sends back what the container says, until the flow ends.
func (p *publication) answer(r route, f *Flow) {
	defer p.flows.Remove(r, f)
	defer f.End()
	from := []byte(r.local)
	for {
		err := f.In.Each(func(b []byte) error {
			f.Touch()
			_, _, _ = p.c.WriteMsgUDPAddrPort(b, from, r.client)
			return nil
		})
		if !errors.Is(err, unix.ECONNREFUSED) { // the program is not there yet, or not any more
			return
		}
	}
}

// answerFrom turns the control message of a received datagram into the one that
// sends from the address it came to (ip(7), ipv6(7)).
func answerFrom(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var info unix.Inet4Pktinfo
			copy(info.Spec_dst[:], m.Data[8:12]) // ipi_addr: where it was sent to
			return unix.PktInfo4(&info)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var info unix.Inet6Pktinfo
			copy(info.Addr[:], m.Data[:16])
			return unix.PktInfo6(&info)
		}
	}
	return nil
}
