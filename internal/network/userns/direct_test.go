package userns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/network"
	"den/internal/testkit"
)

// serveClients answers connections with their client's address and port, and all that they sent.
func serveClients(t *testing.T, ns *os.File, address string) {
	t.Helper()
	go testkit.Accept(listen(t, ns, address), func(c net.Conn) {
		b, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "%s %s", c.RemoteAddr(), b)
	})
}

// oneNetwork is one with a container, in this process.
func oneNetwork(t *testing.T, subnet string) (*side, *container) {
	t.Helper()
	p := netip.MustParsePrefix(subnet)
	n := &network.Network{ID: "0123456789abcdef", Name: "app", MTU: 1500, Subnets: []network.Subnet{{Prefix: p, Gateway: p.Addr().Next()}}}
	opened, err := open(t.Context(), t.TempDir(), n)
	must(t, err)
	s := opened.(*side)
	t.Cleanup(func() { must(t, s.Close()) })
	ns, err := network.NewNamespace()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	e := &network.Endpoint{ID: "0123456789abcdef", Device: "eth0", MAC: "02:42:ac:1e:00:02"}
	if at := netip.PrefixFrom(p.Addr().Next().Next(), p.Bits()); at.Addr().Is4() {
		e.IPv4 = at
	} else {
		e.IPv6 = at
	}
	must(t, network.PlugPair(s.ns, bridgeName, ns, n, e, true))
	return s, &container{ns, *e}
}

// exchange is what a server says through a published port.
func exchange(t *testing.T, s *side, to netip.AddrPort, text string) (client netip.AddrPort, rest string) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	port, err := s.Publish(l, to)
	must(t, err)
	c, err := net.Dial("tcp", l.Addr().String())
	said := say(t, c, err, text)
	must(t, port.Close())
	var name string
	_, err = fmt.Sscan(said, &name)
	must(t, err)
	return netip.MustParseAddrPort(name), said[len(name)+1:]
}

func TestPublishedPortsAreTheKernels(t *testing.T) {
	if !enter(t) {
		return
	}
	s, c := oneNetwork(t, "172.30.0.0/24")
	if s.direct == nil {
		t.Fatal("the kernel allows no rules of routing")
	}
	serveClients(t, c.ns, ":80")
	to := netip.AddrPortFrom(c.e.IPv4.Addr(), 80)
	text := string(make([]byte, 4<<20))
	for range 3 { // each adds the rule and removes it
		client, said := exchange(t, s, to, text)
		if client.Addr() != netip.MustParseAddr("172.30.0.1") || client.Port() < s.direct.ports.first || client.Port() > s.direct.ports.last || said != text {
			t.Errorf("from %s, with %d bytes; want the gateway's address, a port of the kernel's and %d bytes", client, len(said), len(text))
		}
	}
	// The client's own address, where the gateway's need not stand for it.
	must(t, s.direct.add(to))
	stranger := netip.MustParseAddr("203.0.113.9")
	in, err := s.direct.dial(t.Context(), s.Source(stranger, to.Addr()), to)
	must(t, err)
	defer in.Close()
	if said := say(t, in, nil, "x"); netip.MustParseAddrPort(said[:len(said)-2]).Addr() != stranger {
		t.Errorf("a stranger's connection comes from %s", said)
	}
	must(t, s.direct.remove(to))
	closed := netip.AddrPortFrom(to.Addr(), 81)
	must(t, s.direct.add(closed))
	if _, err := s.direct.dial(t.Context(), stranger, closed); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a closed port: %v, want refused", err)
	}
	must(t, s.direct.remove(closed))
}

// What the kernel does not carry goes through the gateway: beside its rules, and on IPv6.
func TestTheGatewayCarriesWhatTheKernelDoesNot(t *testing.T) {
	if !enter(t) {
		return
	}
	s, c := oneNetwork(t, "172.30.0.0/24")
	serveClients(t, c.ns, ":80")
	to := netip.AddrPortFrom(c.e.IPv4.Addr(), 80)
	must(t, s.direct.add(to))
	defer func() { must(t, s.direct.remove(to)) }()
	g, err := s.Dial(t.Context(), netip.Addr{}, to)
	must(t, err)
	defer g.Close()
	_, err = g.Write([]byte("x"))
	must(t, err)
	must(t, g.(network.Stream).CloseWrite())
	said, err := io.ReadAll(g)
	must(t, err)
	if client := netip.MustParseAddrPort(string(said[:len(said)-2])); client.Port() < minLocalPort || client.Port() >= s.direct.ports.first {
		t.Errorf("the gateway's connection is from %s, a port that is the kernel's", client)
	}
	six, c6 := oneNetwork(t, "fd00:30::/64")
	serveClients(t, c6.ns, "[::]:80")
	if client, said := exchange(t, six, netip.AddrPortFrom(c6.e.IPv6.Addr(), 80), "six"); client.Addr() != netip.MustParseAddr("fd00:30::1") || said != "six" {
		t.Errorf("over IPv6: from %s, %q", client, said)
	}
}
