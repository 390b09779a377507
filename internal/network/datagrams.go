package network

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The bounds of one published UDP port.
const (
	maxFlows      = 2048
	flowIdle      = 2 * time.Minute
	datagramBytes = 64 << 10
)

// A datagrams hands the datagrams of a published port to a container: each client
// has a socket of its own there, a flow, so that answers find back.
type datagrams struct {
	c    *net.UDPConn
	to   netip.AddrPort
	idle time.Duration

	mu    sync.Mutex
	flows map[netip.AddrPort]*flow // nil once closed
	work  sync.WaitGroup
}

// A flow is one client's.
type flow struct {
	client netip.AddrPort
	in     *net.UDPConn
	// local is the control message that sends answers from the address that the
	// client wrote to, on a socket of every address.
	local []byte
	used  atomic.Int64 // nanoseconds since the epoch
}

func newDatagrams(c *net.UDPConn, to netip.AddrPort) (*datagrams, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		if domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_INET6 {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err := errors.Join(err, serr); err != nil {
		return nil, err
	}
	d := &datagrams{c: c, to: to, idle: flowIdle, flows: map[netip.AddrPort]*flow{}}
	d.work.Go(d.receive)
	return d, nil
}

// Close ends the port and all its flows.
func (d *datagrams) Close() error {
	d.mu.Lock()
	flows := d.flows
	d.flows = nil
	d.mu.Unlock()
	err := d.c.Close()
	for _, f := range flows {
		_ = f.in.Close()
	}
	d.work.Wait()
	return err
}

func (d *datagrams) receive() {
	b, oob := make([]byte, datagramBytes), make([]byte, 256)
	for {
		n, on, _, client, err := d.c.ReadMsgUDPAddrPort(b, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		if f := d.flow(client, oob[:on]); f != nil {
			f.used.Store(time.Now().UnixNano())
			_, _ = f.in.Write(b[:n]) // datagrams get lost, and refusals are told to the next one
		}
	}
}

// flow finds the client's, or opens one; the one that was silent longest makes room.
func (d *datagrams) flow(client netip.AddrPort, oob []byte) *flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.flows == nil {
		return nil
	}
	if f := d.flows[client]; f != nil {
		return f
	}
	if len(d.flows) >= maxFlows {
		var oldest *flow
		for _, f := range d.flows {
			if oldest == nil || f.used.Load() < oldest.used.Load() {
				oldest = f
			}
		}
		delete(d.flows, oldest.client)
		_ = oldest.in.Close()
	}
	in, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(d.to))
	if err != nil {
		return nil
	}
	f := &flow{client: client, in: in, local: answerFrom(oob)}
	f.used.Store(time.Now().UnixNano())
	d.flows[client] = f
	d.work.Go(func() { d.answer(f) })
	return f
}

// answer sends back what the container says, until the flow has been idle.
func (d *datagrams) answer(f *flow) {
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.flows[f.client] == f {
			delete(d.flows, f.client)
		}
		_ = f.in.Close()
	}()
	b := make([]byte, datagramBytes)
	for {
		left := d.idle - time.Since(time.Unix(0, f.used.Load()))
		if left <= 0 {
			return
		}
		_ = f.in.SetReadDeadline(time.Now().Add(left)) // fails on a closed socket only, as Read does
		n, err := f.in.Read(b)
		var timeout net.Error
		switch {
		case err == nil:
			f.used.Store(time.Now().UnixNano())
			_, _, _ = d.c.WriteMsgUDPAddrPort(b[:n], f.local, f.client)
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNREFUSED): // the program is not there yet, or not any more
		case errors.As(err, &timeout) && timeout.Timeout():
		default:
			return
		}
	}
}

// answerFrom turns the control message of a received datagram into the one that
// sends from the address it came to (ip(7), ipv6(7)).
func answerFrom(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
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
