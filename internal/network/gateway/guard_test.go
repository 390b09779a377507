package gateway

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
)

func ethernet(to net.HardwareAddr, protocol tcpip.NetworkProtocolNumber, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(append([]byte(nil), to...), guestMAC...), uint16(protocol)), payload...)
}

// whoHas is an ARP request of the guest.
func whoHas(target netip.Addr) []byte {
	b := make(header.ARP, header.ARPSize)
	b.SetIPv4OverEthernet()
	b.SetOp(header.ARPRequest)
	copy(b.HardwareAddressSender(), guestMAC)
	copy(b.ProtocolAddressSender(), guest4.Addr().AsSlice())
	copy(b.ProtocolAddressTarget(), target.AsSlice())
	return ethernet(net.HardwareAddr{255, 255, 255, 255, 255, 255}, arp.ProtocolNumber, b)
}

// solicit is a neighbour solicitation of the guest, behind an extension header if hidden.
func solicit(target netip.Addr, hidden bool) []byte {
	h := make(header.ICMPv6, header.ICMPv6NeighborSolicitMinimumSize+8)
	h.SetType(header.ICMPv6NeighborSolicit)
	copy(h[8:], target.AsSlice())
	h[24], h[25] = 1, 1 // source link-layer address
	copy(h[26:], guestMAC)
	src, dst := address(guest6.Addr()), header.SolicitedNodeAddr(address(target))
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: src, Dst: dst}))
	next, payload := header.ICMPv6ProtocolNumber, []byte(h)
	if hidden {
		payload = append([]byte{uint8(next), 0, 1, 4, 0, 0, 0, 0}, payload...)
		next = 60 // destination options
	}
	ip := make(header.IPv6, header.IPv6MinimumSize)
	ip.Encode(&header.IPv6Fields{PayloadLength: uint16(len(payload)), TransportProtocol: next, HopLimit: 255, SrcAddr: src, DstAddr: dst})
	mac := header.EthernetAddressFromMulticastIPv6Address(dst)
	return ethernet(net.HardwareAddr(mac), ipv6.ProtocolNumber, append(ip, payload...))
}

// ping is an echo request from and to any address.
func ping(from, to netip.Addr) []byte {
	h := make(header.ICMPv4, 16)
	h.SetType(header.ICMPv4Echo)
	h.SetChecksum(^checksum.Checksum(h, 0))
	ip := make(header.IPv4, header.IPv4MinimumSize)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip) + len(h)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber), SrcAddr: address(from), DstAddr: address(to)})
	ip.SetChecksum(^ip.CalculateChecksum())
	return ethernet(testMAC, ipv4.ProtocolNumber, append(ip, h...))
}

// A spoofing stack answers for every address there is, so that whoever asks first for a
// neighbour would send to the gateway.
func TestGatewayAnswersForItsOwnAddressesOnly(t *testing.T) {
	_, end := start(t, 1500, Config{HostLoopback: true})
	strangers := []netip.Addr{guest4.Addr().Next(), netip.MustParseAddr("192.0.2.1")}
	for _, a := range strangers {
		write(t, end, whoHas(a))
	}
	for _, a := range []netip.Addr{guest6.Addr().Next(), netip.MustParseAddr("2001:db8::1")} {
		write(t, end, solicit(a, false))
		write(t, end, solicit(a, true))
	}
	write(t, end, ping(netip.MustParseAddr("10.89.8.2"), gateway4.Addr()))
	write(t, end, solicit(gateway6.Addr(), false))
	write(t, end, whoHas(gateway4.Addr()))

	// Frames are handled in order on each of the two protocols: any answer to a stranger
	// would come before these.
	var advert, reply int
	for advert == 0 || reply == 0 {
		b := make([]byte, 2000)
		n, err := end.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		b = b[14:n]
		switch {
		case string(b[:2]) == "\x00\x01" && b[7] == 2:
			if reply++; string(b[14:18]) != string(gateway4.Addr().AsSlice()) {
				t.Errorf("ARP reply for %v", b[14:18])
			}
		case b[0]>>4 == 6 && b[6] == 58 && b[40] == 136:
			if advert++; string(b[48:64]) != string(gateway6.Addr().AsSlice()) {
				t.Errorf("neighbour advertisement for %x", b[48:64])
			}
		case b[0]>>4 == 4:
			t.Errorf("answer to a stranger: %x", b)
		}
	}
}

func write(t *testing.T, f *os.File, b []byte) {
	t.Helper()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

func TestPortsThatLookLikeSolicitationsPass(t *testing.T) {
	g := &guard{own: []netip.Prefix{gateway6}}
	b := make(header.IPv6, header.IPv6MinimumSize+header.TCPMinimumSize)
	b.Encode(&header.IPv6Fields{PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, SrcAddr: address(guest6.Addr()), DstAddr: address(gateway6.Addr())})
	b[header.IPv6MinimumSize] = byte(header.ICMPv6NeighborSolicit) // ports 34560 to 34815
	if !g.admits(ipv6.ProtocolNumber, b) {
		t.Error("a TCP segment was taken for a neighbour solicitation")
	}
}

// FuzzFrames: whatever containers send, the gateway lives and answers afterwards.
func FuzzFrames(f *testing.F) {
	for _, b := range [][]byte{whoHas(gateway4.Addr()), solicit(gateway6.Addr(), true), ping(guest4.Addr(), gateway4.Addr()), {}, []byte(strings.Repeat("x", 14))} {
		f.Add(b)
	}
	frag, err := hex.DecodeString("02420a59070102420a5907020800450000240001200040012ee40a5907020a5907010800f7ff000000000000000000000000")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frag)
	_, end := start(f, 1500, Config{Internal: true})
	probe := whoHas(gateway4.Addr())
	if err := unix.SetsockoptTimeval(int(end.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1514 {
			b = b[:1514]
		}
		if len(b) > 0 { // an empty packet is the cable's end
			write(t, end, b)
		}
		write(t, end, probe)
		answer := make([]byte, 2000)
		for {
			n, err := end.Read(answer)
			if err != nil {
				t.Fatal(err)
			}
			if n >= 42 && answer[12] == 8 && answer[13] == 6 && answer[21] == 2 {
				return
			}
		}
	})
}
