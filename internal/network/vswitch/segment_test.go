package vswitch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	macs = []net.HardwareAddr{{2, 0x42, 0, 0, 0, 1}, {2, 0x42, 0, 0, 0, 2}, {2, 0x42, 0, 0, 0, 3}}
	ips  = []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3")}
	ip6s = []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::3")}
	all  = net.HardwareAddr{255, 255, 255, 255, 255, 255}
)

// join plugs sandbox i in and returns its end of the cable.
func join(t testing.TB, s *segment, i int) *os.File {
	t.Helper()
	ours, theirs, err := newCable()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	if _, err := s.add(ours, macs[i], []netip.Addr{ips[i], ip6s[i]}); err != nil {
		t.Fatal(err)
	}
	return theirs
}

func frame(to, from net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(append(append([]byte(nil), to...), from...), kind)
	return append(b, bytes.Join(payload, nil)...)
}

func arp(op byte, mac net.HardwareAddr, ip, target netip.Addr) []byte {
	return bytes.Join([][]byte{{0, 1, 8, 0, 6, 4, 0, op}, mac, ip.AsSlice(), make([]byte, 6), target.AsSlice()}, nil)
}

func ipv4(from netip.Addr, protocol byte, payload ...byte) []byte {
	b := make([]byte, 20)
	b[0], b[9] = 0x45, protocol
	copy(b[12:], from.AsSlice())
	copy(b[16:], ips[1].AsSlice())
	return append(b, payload...)
}

func ipv6(from netip.Addr, next byte, payload ...[]byte) []byte {
	b := make([]byte, 40)
	b[0], b[6] = 0x60, next
	copy(b[8:], from.AsSlice())
	return append(b, bytes.Join(payload, nil)...)
}

// discovery is a neighbour solicitation or advertisement with a link-layer address.
func discovery(kind byte, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
	return bytes.Join([][]byte{{kind, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice(), {option, 1}, mac}, nil)
}

func TestPortSendsInItsOwnNameOnly(t *testing.T) {
	id := newIdentity(macs[0], []netip.Addr{ips[0], ip6s[0]})
	nobody := netip.IPv6Unspecified()
	link := netip.MustParseAddr("fe80::42:ff:fe00:1")
	for _, x := range []struct {
		name string
		f    []byte
		want bool
	}{
		{"IPv4", frame(macs[1], macs[0], typeIPv4, ipv4(ips[0], 6)), true},
		{"IPv4 of another", frame(macs[1], macs[0], typeIPv4, ipv4(ips[1], 6)), false},
		{"IPv4 by another's hardware", frame(macs[1], macs[2], typeIPv4, ipv4(ips[0], 6)), false},
		{"echo request", frame(macs[1], macs[0], typeIPv4, ipv4(ips[0], 1, 8, 0, 0, 0)), true},
		{"redirect", frame(macs[1], macs[0], typeIPv4, ipv4(ips[0], 1, 5, 1, 0, 0)), false},
		{"short header", frame(macs[1], macs[0], typeIPv4, ipv4(ips[0], 6)[:19]), false},
		{"ARP request", frame(all, macs[0], typeARP, arp(1, macs[0], ips[0], ips[1])), true},
		{"ARP probe", frame(all, macs[0], typeARP, arp(1, macs[0], netip.IPv4Unspecified(), ips[0])), true},
		{"ARP request in another's name", frame(all, macs[0], typeARP, arp(1, macs[0], ips[1], ips[2])), false},
		{"ARP answer", frame(macs[1], macs[0], typeARP, arp(2, macs[0], ips[0], ips[1])), true},
		{"ARP answer for the gateway", frame(macs[1], macs[0], typeARP, arp(2, macs[0], ips[2], ips[1])), false},
		{"ARP answer with another's hardware", frame(macs[1], macs[0], typeARP, arp(2, macs[2], ips[0], ips[1])), false},
		{"ARP of RARP", frame(macs[1], macs[0], typeARP, arp(3, macs[0], ips[0], ips[1])), false},
		{"IPv6", frame(macs[1], macs[0], typeIPv6, ipv6(ip6s[0], 6)), true},
		{"IPv6 link-local", frame(macs[1], macs[0], typeIPv6, ipv6(link, 17)), true},
		{"IPv6 of another", frame(macs[1], macs[0], typeIPv6, ipv6(ip6s[1], 6)), false},
		{"IPv6 of nobody", frame(macs[1], macs[0], typeIPv6, ipv6(nobody, 17)), false},
		{"solicitation", frame(all, macs[0], typeIPv6, ipv6(ip6s[0], icmp6, discovery(135, ip6s[1], 1, macs[0]))), true},
		{"solicitation with another's hardware", frame(all, macs[0], typeIPv6, ipv6(ip6s[0], icmp6, discovery(135, ip6s[1], 1, macs[1]))), false},
		{"duplicate detection", frame(all, macs[0], typeIPv6, ipv6(nobody, icmp6, discovery(135, ip6s[0], 14, macs[0]))), true},
		{"duplicate detection of another's", frame(all, macs[0], typeIPv6, ipv6(nobody, icmp6, discovery(135, ip6s[1], 14, macs[0]))), false},
		{"advertisement", frame(all, macs[0], typeIPv6, ipv6(ip6s[0], icmp6, discovery(136, ip6s[0], 2, macs[0]))), true},
		{"advertisement for another", frame(all, macs[0], typeIPv6, ipv6(ip6s[0], icmp6, discovery(136, ip6s[1], 2, macs[0]))), false},
		{"advertisement for another, hidden", frame(all, macs[0], typeIPv6, ipv6(ip6s[0], destination, []byte{icmp6, 0, 1, 4, 0, 0, 0, 0}, discovery(136, ip6s[1], 2, macs[0]))), false},
		{"router advertisement", frame(all, macs[0], typeIPv6, ipv6(link, icmp6, make([]byte, 0), []byte{134, 0, 0, 0})), false},
		{"redirect of IPv6", frame(all, macs[0], typeIPv6, ipv6(link, icmp6, []byte{137, 0, 0, 0})), false},
		{"endless options", frame(all, macs[0], typeIPv6, ipv6(ip6s[0], icmp6, discovery(136, ip6s[0], 2, macs[0]), []byte{1, 0, 0, 0, 0, 0, 0, 0})), false},
		{"VLAN", frame(macs[1], macs[0], 0x8100, ipv4(ips[0], 6)), false},
		{"nothing", nil, false},
	} {
		if got := id.admits(x.f); got != x.want {
			t.Errorf("%s: admitted %v, want %v", x.name, got, x.want)
		}
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add(frame(all, macs[0], typeARP, arp(1, macs[0], ips[0], ips[1])))
	f.Add(frame(all, macs[0], typeIPv4, ipv4(ips[0], 1, 8)))
	f.Add(frame(all, macs[0], typeIPv6, ipv6(ip6s[0], 0, []byte{icmp6, 0, 1, 4, 0, 0, 0, 0}, discovery(136, ip6s[0], 2, macs[0]))))
	id := newIdentity(macs[0], []netip.Addr{ips[0], ip6s[0]})
	f.Fuzz(func(t *testing.T, b []byte) {
		if id.admits(b) && !bytes.Equal(b[6:12], macs[0]) {
			t.Error("another's hardware address was admitted")
		}
	})
}

func TestFramesGoWhereTheyBelong(t *testing.T) {
	s := newSegment(net.HardwareAddr{2, 0x42, 0, 0, 0, 9}, MTU, false)
	defer s.close()
	a, b, c := join(t, s, 0), join(t, s, 1), join(t, s, 2)
	spoofed := frame(macs[1], macs[2], typeIPv4, ipv4(ips[2], 6), []byte("spoofed"))
	direct := frame(macs[1], macs[0], typeIPv4, ipv4(ips[0], 6), bytes.Repeat([]byte("x"), 60000))
	everybody := frame(all, macs[0], typeARP, arp(1, macs[0], ips[0], ips[2]))
	for _, f := range [][]byte{spoofed, direct, everybody} {
		if _, err := a.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		end  *os.File
		want [][]byte
	}{{b, [][]byte{direct, everybody}}, {c, [][]byte{everybody}}} {
		for _, want := range x.want {
			got := make([]byte, maxFrame)
			n, err := x.end.Read(got)
			if err != nil || !bytes.Equal(got[:n], want) {
				t.Fatalf("%d bytes, %v, want %d", n, err, len(want))
			}
		}
	}
	ours, theirs, err := newCable()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if _, err := s.add(ours, macs[0], nil); !errors.Is(err, errTaken) {
		t.Errorf("a hardware address was given twice: %v", err)
	}
}

func TestSandboxThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	s := newSegment(net.HardwareAddr{2, 0x42, 0, 0, 0, 9}, MTU, false)
	defer s.close()
	a, _, c := join(t, s, 0), join(t, s, 1), join(t, s, 2)
	deaf := frame(macs[1], macs[0], typeIPv4, ipv4(ips[0], 6), make([]byte, 60000))
	for range 200 { // more than any buffer holds
		if _, err := a.Write(deaf); err != nil {
			t.Fatal(err)
		}
	}
	want := frame(macs[2], macs[0], typeIPv4, ipv4(ips[0], 6), []byte("in time"))
	if _, err := a.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(int(c.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, maxFrame)
	n, err := c.Read(got)
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("%q, %v", got[:max(n, 0)], err)
	}
}

func TestPortGoesWithItsSandbox(t *testing.T) {
	s := newSegment(net.HardwareAddr{2, 0x42, 0, 0, 0, 9}, MTU, false)
	defer s.close()
	end := join(t, s, 0)
	s.mu.RLock()
	p := s.ports[hardware(macs[0])]
	s.mu.RUnlock()
	if err := end.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatal("the port outlives its sandbox")
	}
	join(t, s, 0)
	if _, err := p.cable.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the cable is not closed: %v", err)
	}
}
