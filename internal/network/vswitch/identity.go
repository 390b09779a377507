package vswitch

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// Ethernet (IEEE 802.3) and the protocols that a port may speak.
const (
	ethernetHeader = 14
	typeIPv4       = 0x0800
	typeARP        = 0x0806
	typeIPv6       = 0x86dd
)

// An identity is who a port may say it is.
type identity struct {
	mac       hardware
	addresses []netip.Addr
	link      netip.Addr // the IPv6 link-local address that goes with mac (RFC 4291, appendix A)
}

func newIdentity(mac net.HardwareAddr, addresses []netip.Addr) identity {
	m := hardware(mac)
	return identity{m, addresses, netip.AddrFrom16([16]byte{
		0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})}
}

// owns reports whether b is an address of the port.
func (i *identity) owns(b []byte) bool {
	a, ok := netip.AddrFromSlice(b)
	return ok && (a == i.link || slices.Contains(i.addresses, a))
}

// admits decides whether the port may send a frame. Everything else is dropped: VLANs,
// other protocols, other senders.
func (i *identity) admits(f []byte) bool {
	if len(f) < ethernetHeader || hardware(f[6:12]) != i.mac {
		return false
	}
	switch b := f[ethernetHeader:]; binary.BigEndian.Uint16(f[12:]) {
	case typeARP:
		return i.admitsARP(b)
	case typeIPv4:
		return i.admitsIPv4(b)
	case typeIPv6:
		return i.admitsIPv6(b)
	}
	return false
}

// admitsARP: requests and answers in the own name (RFC 826), and probes (RFC 5227).
func (i *identity) admitsARP(b []byte) bool {
	const ethernetIPv4 = "\x00\x01\x08\x00\x06\x04"
	if len(b) < 28 || string(b[:6]) != ethernetIPv4 || hardware(b[8:14]) != i.mac {
		return false
	}
	switch binary.BigEndian.Uint16(b[6:]) {
	case 1:
		return i.owns(b[14:18]) || string(b[14:18]) == "\x00\x00\x00\x00"
	case 2:
		return i.owns(b[14:18])
	}
	return false
}

func (i *identity) admitsIPv4(b []byte) bool {
	if len(b) < 20 || b[0]>>4 != 4 || !i.owns(b[12:16]) {
		return false
	}
	header := int(b[0]&15) * 4
	first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0
	if header < 20 || len(b) < header {
		return false
	}
	const icmp, redirect, advertisement = 1, 5, 9
	if b[9] == icmp && first {
		return len(b) > header && b[header] != redirect && b[header] != advertisement
	}
	return true
}

// The headers of IPv6 that can stand before ICMP's.
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	icmp6       = 58
	destination = 60
)

func (i *identity) admitsIPv6(b []byte) bool {
	if len(b) < 40 || b[0]>>4 != 6 {
		return false
	}
	source, next := b[8:24], b[6]
	nobody := netip.AddrFrom16([16]byte(source)).IsUnspecified()
	if !nobody && !i.owns(source) {
		return false
	}
	for b = b[40:]; ; {
		switch next {
		case hopByHop, routing, destination:
			if len(b) < 8 || len(b) < int(b[1])*8+8 {
				return false
			}
			next, b = b[0], b[int(b[1])*8+8:]
		case fragment:
			// Nobody takes neighbour discovery out of fragments (RFC 6980).
			return len(b) >= 8 && !nobody
		case icmp6:
			return i.admitsICMP6(b, nobody)
		default:
			return !nobody
		}
	}
}

// admitsICMP6: neighbour discovery (RFC 4861) in the own name, nothing that routers say.
func (i *identity) admitsICMP6(b []byte, nobody bool) bool {
	const routerSolicit, routerAdvert, solicit, advert, redirect, listenerReport, listenerReport2 = 133, 134, 135, 136, 137, 131, 143
	if len(b) < 4 {
		return false
	}
	switch b[0] {
	case routerAdvert, redirect:
		return false
	case solicit: // of nobody it asks whether its own address is taken
		return len(b) >= 24 && (!nobody || i.owns(b[8:24])) && i.ownOptions(b[24:])
	case advert:
		return len(b) >= 24 && !nobody && i.owns(b[8:24]) && i.ownOptions(b[24:])
	case routerSolicit:
		return len(b) >= 8 && i.ownOptions(b[8:])
	case listenerReport, listenerReport2:
		return true
	}
	return !nobody
}

// ownOptions reports whether the link-layer addresses among a message's options are the port's.
func (i *identity) ownOptions(b []byte) bool {
	const source, target = 1, 2
	for len(b) > 0 {
		if len(b) < 8 || b[1] == 0 || len(b) < int(b[1])*8 {
			return false
		}
		if (b[0] == source || b[0] == target) && hardware(b[2:8]) != i.mac {
			return false
		}
		b = b[int(b[1])*8:]
	}
	return true
}
