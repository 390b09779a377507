package gateway

import (
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/nested"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A guard stands between the link and the stack. A stack that spoofs answers ARP
// requests and neighbour solicitations for every address there is, so it must not
// see those for others; and it must not forward for strangers.
type guard struct {
	nested.Endpoint
	own []netip.Prefix

	delivering sync.RWMutex // held while the stack has a packet
	shut       bool
}

func newGuard(link stack.LinkEndpoint, own []netip.Prefix) *guard {
	g := &guard{own: own}
	g.Init(link, g)
	return g
}

// DeliverNetworkPacket passes pkt on if the stack may see it.
func (g *guard) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	const most = header.IPv6MinimumSize + header.ICMPv6NeighborSolicitMinimumSize
	head, ok := pkt.Data().PullUp(min(most, pkt.Data().Size()))
	if !ok || pkt.PktType == tcpip.PacketOtherHost || !g.admits(protocol, head) {
		return
	}
	g.delivering.RLock()
	defer g.delivering.RUnlock()
	if !g.shut {
		g.Endpoint.DeliverNetworkPacket(protocol, pkt)
	}
}

// close lets no packet in any more, and returns when the stack has none. A stack that is
// destroyed waits, with its lock in hand, for whoever delivers, who may need that lock.
func (g *guard) close() {
	g.delivering.Lock()
	defer g.delivering.Unlock()
	g.shut = true
}

// admits decides by the first bytes of a packet behind its Ethernet header.
func (g *guard) admits(protocol tcpip.NetworkProtocolNumber, b []byte) bool {
	switch protocol {
	case arp.ProtocolNumber:
		h := header.ARP(b)
		if len(b) < header.ARPSize || !h.IsValid() {
			return false
		}
		if h.Op() == header.ARPReply { // the stack asks in the name of the address that it spoofs
			return g.in(h.ProtocolAddressSender()) && !g.is(h.ProtocolAddressSender())
		}
		return g.is(h.ProtocolAddressTarget())
	case ipv4.ProtocolNumber:
		return len(b) >= header.IPv4MinimumSize && g.in(b[12:16])
	case ipv6.ProtocolNumber:
		if len(b) < header.IPv6MinimumSize {
			return false
		}
		src, _ := netip.AddrFromSlice(b[8:24])
		if !src.IsLinkLocalUnicast() && !src.IsUnspecified() && !g.in(b[8:24]) {
			return false
		}
		// The next header first: the type's place is a port in TCP.
		if b[6] != uint8(header.ICMPv6ProtocolNumber) {
			return !extension(b[6])
		}
		b = b[header.IPv6MinimumSize:]
		if len(b) == 0 || header.ICMPv6Type(b[0]) != header.ICMPv6NeighborSolicit {
			return true
		}
		return len(b) >= header.ICMPv6NeighborSolicitMinimumSize && g.is(b[8:24])
	}
	return false
}

// extension reports whether an IPv6 header with this number can hide a neighbour
// solicitation behind it. Fragments pass: the stack takes no solicitation out of
// one that was reassembled (RFC 6980), and large datagrams come in them.
func extension(number uint8) bool {
	switch header.IPv6ExtensionHeaderIdentifier(number) {
	case header.IPv6HopByHopOptionsExtHdrIdentifier, header.IPv6RoutingExtHdrIdentifier, header.IPv6DestinationOptionsExtHdrIdentifier:
		return true
	}
	return false
}

// is reports whether b is one of the gateway's addresses, in whether it is in one of its subnets.
func (g *guard) is(b []byte) bool {
	a, _ := netip.AddrFromSlice(b)
	for _, p := range g.own {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

func (g *guard) in(b []byte) bool {
	a, _ := netip.AddrFromSlice(b)
	for _, p := range g.own {
		if p.Masked().Contains(a) {
			return true
		}
	}
	return false
}
