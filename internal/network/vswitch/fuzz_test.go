package vswitch

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/network"
)

// FuzzFrames sends what a hostile sandbox may, in any order: fragments that never end or overlap, headers that lie,
// frames of other lengths than they say. Its neighbour is served afterwards, and nothing came in the hostile one's name.
func FuzzFrames(f *testing.F) {
	ns := openWith(f, network.Options{NoHostLoopback: true})
	n := create(f, ns, network.CreateRequest{Name: "app", IPv6: true})
	hostile, good := cableOf(f, ns, "h1"), cableOf(f, ns, "g2")
	f.Add(frames(frame(all, hostile.mac, typeARP, arp(1, hostile.mac, hostile.ip, n.Gateways()[0]))))
	for _, offset := range []uint16{0x2000, 0x2001, 0x3fff, 1} { // more fragments, and the last
		p := ipv4(hostile.ip, 17, make([]byte, 24)...)
		binary.BigEndian.PutUint16(p[6:], offset)
		f.Add(frames(frame(gatewayMAC(n), hostile.mac, typeIPv4, p), frame(all, hostile.mac, typeIPv4, p), frame(good.mac, hostile.mac, typeIPv4, p)))
	}
	f.Add(frames(frame(all, hostile.mac, typeIPv6, ipv6(hostile.ip6, 44, []byte{17, 0, 0, 1, 0, 0, 0, 9}, make([]byte, 16)))))
	f.Add([]byte{0, 1, 0, 0, 3, 'a', 'b', 'c'})
	probe := frame(all, good.mac, typeARP, arp(1, good.mac, good.ip, n.Gateways()[0]))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 2 {
			size := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			if size > 0 { // an empty packet is the cable's end
				_, _ = hostile.end.Write(b[2 : 2+size])
			}
			b = b[2+size:]
		}
		if _, err := good.end.Write(probe); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, maxFrame)
		for {
			k, err := good.end.Read(answer)
			if err != nil {
				t.Fatal(err)
			}
			if k < 42 || hardware(answer[6:12]) == hardware(hostile.mac) {
				continue // what it may say to its neighbour
			}
			if binary.BigEndian.Uint16(answer[12:]) == typeARP && answer[21] == 2 && netip.AddrFrom4([4]byte(answer[28:32])) == n.Gateways()[0] {
				return
			}
		}
	})
}

// frames are length and bytes of each.
func frames(list ...[]byte) (b []byte) {
	for _, f := range list {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// A plug is a container without a stack.
type plug struct {
	end     *os.File
	mac     []byte
	ip, ip6 netip.Addr
}

func cableOf(f *testing.F, ns *network.Networks, name string) plug {
	f.Helper()
	s, es, err := ns.Attach(f.Context(), name, []network.EndpointRequest{{Network: "app", Name: name}})
	if err != nil {
		f.Fatal(err)
	}
	i := s.Interfaces()[0]
	if err := unix.SetsockoptTimeval(int(i.Cable.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}); err != nil {
		f.Fatal(err)
	}
	return plug{i.Cable, i.MAC, es[0].IPv4.Addr(), es[0].IPv6.Addr()}
}
