package gateway

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	pktbuf "gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// pingTimeout is how long an echo request that left waits for its answer.
const pingTimeout = 10 * time.Second

// echo4 is told of ICMP messages that belong to no socket of the stack. It sends echo
// requests on by an unprivileged ping socket, where net.ipv4.ping_group_range allows
// it, and hands the answer back. True says that the stack itself must not answer.
func (g *Gateway) echo4(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo {
		return false
	}
	ip := header.IPv4(pkt.NetworkHeader().Slice())
	return g.echo(plain(ip.SourceAddress()), plain(ip.DestinationAddress()), h, pkt)
}

func (g *Gateway) echo6(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv6(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv6EchoMinimumSize || h.Type() != header.ICMPv6EchoRequest {
		return false
	}
	ip := header.IPv6(pkt.NetworkHeader().Slice())
	return g.echo(plain(ip.SourceAddress()), plain(ip.DestinationAddress()), h, pkt)
}

func (g *Gateway) echo(from, to netip.Addr, h []byte, pkt *stack.PacketBuffer) bool {
	if g.c.own(to) {
		return false
	}
	out, ok := g.c.outside(to)
	if !ok {
		return true
	}
	if !g.pings.Take(from) {
		return true
	}
	msg := append(append([]byte(nil), h...), pkt.Data().AsRange().ToSlice()...)
	if !g.goes(func() {
		defer g.pings.Give(from)
		if answer, err := g.ping(out, msg); err == nil {
			g.sendEcho(from, to, msg, answer)
		}
	}) {
		g.pings.Give(from)
	}
	return true
}

// ping sends msg, an echo request, and returns the message that answers it.
func (g *Gateway) ping(to netip.Addr, msg []byte) ([]byte, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice())}
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if err := g.hold(f); err != nil {
		return nil, err
	}
	defer g.forget(f)
	if err := unix.Connect(fd, sa); err != nil {
		return nil, err
	}
	if _, err := f.Write(msg); err != nil {
		return nil, err
	}
	if err := f.SetReadDeadline(time.Now().Add(pingTimeout)); err != nil {
		return nil, err
	}
	b := make([]byte, len(msg))
	n, err := f.Read(b)
	if err == nil && n < header.ICMPv4MinimumSize {
		err = errors.New("short echo reply")
	}
	return b[:max(n, 0)], err
}

// sendEcho gives the container the answer from the address that it asked.
func (g *Gateway) sendEcho(container, asked netip.Addr, request, answer []byte) {
	copy(answer[4:6], request[4:6]) // the kernel put an identifier of its own
	if asked.Is6() {
		h := header.ICMPv6(answer)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: address(asked), Dst: address(container)}))
		g.send(asked, container, header.ICMPv6ProtocolNumber, h)
		return
	}
	h := header.ICMPv4(answer)
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(h, 0))
	g.send(asked, container, header.ICMPv4ProtocolNumber, h)
}

// unreachable says in the name of the flow's other end that no socket is there.
func (g *Gateway) unreachable(k flowKey) {
	u := make(header.UDP, header.UDPMinimumSize)
	u.Encode(&header.UDPFields{SrcPort: k.from.Port(), DstPort: k.to.Port(), Length: header.UDPMinimumSize})
	src, dst := address(k.from.Addr()), address(k.to.Addr())
	if k.to.Addr().Is6() {
		ip := make(header.IPv6, header.IPv6MinimumSize)
		ip.Encode(&header.IPv6Fields{PayloadLength: header.UDPMinimumSize, TransportProtocol: header.UDPProtocolNumber, HopLimit: 64, SrcAddr: src, DstAddr: dst})
		h := make(header.ICMPv6, header.ICMPv6DstUnreachableMinimumSize, header.ICMPv6DstUnreachableMinimumSize+len(ip)+len(u))
		h.SetType(header.ICMPv6DstUnreachable)
		h.SetCode(header.ICMPv6PortUnreachable)
		h = append(append(h, ip...), u...)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: dst, Dst: src}))
		g.send(k.to.Addr(), k.from.Addr(), header.ICMPv6ProtocolNumber, h)
		return
	}
	ip := make(header.IPv4, header.IPv4MinimumSize)
	ip.Encode(&header.IPv4Fields{TotalLength: header.IPv4MinimumSize + header.UDPMinimumSize, TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	h := make(header.ICMPv4, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(ip)+len(u))
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(header.ICMPv4PortUnreachable)
	h = append(append(h, ip...), u...)
	h.SetChecksum(^checksum.Checksum(h, 0))
	g.send(k.to.Addr(), k.from.Addr(), header.ICMPv4ProtocolNumber, h)
}

// send sends a packet to a container, as if it came from an address outside. It may get lost.
func (g *Gateway) send(from, to netip.Addr, transport tcpip.TransportProtocolNumber, payload []byte) {
	route, terr := g.stack.FindRoute(nic, address(from), address(to), protocol(to), false)
	if terr != nil {
		return
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()),
		Payload:            pktbuf.MakeWithData(payload),
	})
	defer pkt.DecRef()
	_ = route.WritePacket(stack.NetworkHeaderParams{Protocol: transport, TTL: 64}, pkt)
}
