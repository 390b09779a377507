package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/network/guest"
	"den/internal/network/share"
	"den/internal/oci"
	"den/internal/testkit"
)

var (
	testMAC  = net.HardwareAddr{2, 0x42, 10, 89, 7, 1}
	guestMAC = net.HardwareAddr{2, 0x42, 10, 89, 7, 2}
	gateway4 = netip.MustParsePrefix("10.89.7.1/24")
	gateway6 = netip.MustParsePrefix("fd00:89:7::1/64")
	guest4   = netip.MustParsePrefix("10.89.7.2/24")
	guest6   = netip.MustParsePrefix("fd00:89:7::2/64")
)

// cable is a SOCK_SEQPACKET pair.
func cable(t testing.TB) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// start runs a gateway on a cable and returns the cable's other end.
func start(t testing.TB, mtu int, c Config) (*Gateway, *os.File) {
	t.Helper()
	here, there := cable(t)
	link, err := CableLink(int(here.Fd()), testMAC, mtu)
	if err != nil {
		t.Fatal(err)
	}
	c.Addresses = []netip.Prefix{gateway4, gateway6}
	g, err := New(c, link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g, there
}

func join(t testing.TB, mtu int, end *os.File) *guest.Guest {
	t.Helper()
	in, err := guest.New(oci.Interface{
		Name: "eth0", MAC: guestMAC, MTU: mtu, Cable: end,
		Addresses: []netip.Prefix{guest4, guest6}, Gateways: []netip.Addr{gateway4.Addr(), gateway6.Addr()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	return in
}

// lab is a gateway that leads to the loopback device, and a guest.
func lab(t testing.TB, mtu int) (*Gateway, *guest.Guest) {
	t.Helper()
	g, end := start(t, mtu, Config{HostLoopback: true})
	return g, join(t, mtu, end)
}

// outer listens on a loopback address; without IPv6 the test is skipped.
func outer(t testing.TB, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil && strings.HasPrefix(address, "[") {
		t.Skip("no IPv6 loopback address")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// echo answers every connection with what it sent, once that has ended.
func echo(l net.Listener) {
	testkit.Accept(l, func(c net.Conn) {
		all, _ := io.ReadAll(c)
		_, _ = c.Write(append([]byte(c.RemoteAddr().String()+" "), all...))
	})
}

// say sends text, ends its side and returns the answer.
func say(t testing.TB, c net.Conn, text string) string {
	t.Helper()
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func port(a net.Addr) uint16 { return addrPort(a).Port() }

func at(a netip.Prefix, port uint16) string { return netip.AddrPortFrom(a.Addr(), port).String() }

func TestContainerReachesTheOutside(t *testing.T) {
	for _, c := range []struct {
		listen  string
		gateway netip.Prefix
	}{{"127.0.0.1:0", gateway4}, {"[::1]:0", gateway6}} {
		t.Run(c.listen, func(t *testing.T) {
			l := outer(t, c.listen)
			go echo(l)
			_, in := lab(t, 1500)
			conn, err := in.Dial(t.Context(), "tcp", at(c.gateway, port(l.Addr())))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Repeat("all of it, and its end. ", 40000)
			if got := say(t, conn, text); !strings.HasSuffix(got, " "+text) {
				t.Errorf("%d bytes came back, want %d and the client's address", len(got), len(text))
			}
		})
	}
}

func TestPortThatIsClosedOutsideIsClosedInside(t *testing.T) {
	l := outer(t, "127.0.0.1:0")
	closed := port(l.Addr())
	l.Close()
	_, in := lab(t, 1500)
	for _, to := range []netip.Prefix{gateway4, gateway6} {
		_, err := in.Dial(t.Context(), "tcp", at(to, closed))
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("TCP to %s: %v, want refused", to, err)
		}
		c, err := in.Dial(t.Context(), "udp", at(to, closed))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for err == nil || errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "timeout") {
			if _, err = c.Write([]byte("anybody?")); err == nil {
				// The error does not wake a reader, but it is what the next call meets.
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				_, err = c.Read(make([]byte, 10))
			}
		}
		if !strings.Contains(err.Error(), "refused") {
			t.Errorf("UDP to %s: %v, want refused", to, err)
		}
	}
}

func TestDatagramsOf60000BytesPassBothWays(t *testing.T) {
	for _, mtu := range []int{1500, 65000} {
		outside, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer outside.Close()
		go func() {
			b := make([]byte, 65536)
			for {
				n, a, err := outside.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = outside.WriteTo(b[:n], a)
			}
		}()
		_, in := lab(t, mtu)
		c, err := in.Dial(t.Context(), "udp", at(gateway4, port(outside.LocalAddr())))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want := bytes.Repeat([]byte("0123456789"), 6000)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 65536)
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("MTU %d: %d bytes came back: %v", mtu, n, err)
		}
	}
}

func TestPublishedPortLeadsToTheContainer(t *testing.T) {
	g, in := lab(t, 1500)
	for _, own := range []netip.Prefix{guest4, guest6} {
		inside, err := in.Listen(netip.AddrPortFrom(own.Addr(), 5432))
		if err != nil {
			t.Fatal(err)
		}
		defer inside.Close()
		go echo(inside)
		l := outer(t, "127.0.0.1:0")
		p, err := g.Publish(l, netip.AddrPortFrom(own.Addr(), 5432))
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		gw := gateway4
		if own == guest6 {
			gw = gateway6
		}
		got := say(t, c, "hello")
		from, text, _ := strings.Cut(got, " ")
		if a, err := netip.ParseAddrPort(from); err != nil || a.Addr() != gw.Addr() || text != "hello" {
			t.Errorf("container saw %q, want a client at %s that says hello", got, gw.Addr())
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := net.Dial("tcp", l.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("after Close: %v, want refused", err)
		}
	}
}

func TestContainerSeesTheClientsAddress(t *testing.T) {
	g, in := lab(t, 1500)
	inside, err := in.Listen(netip.AddrPortFrom(guest4.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go echo(inside)
	for client, want := range map[string]string{
		"198.51.100.7": "198.51.100.7", // a stranger's
		"127.0.0.1":    "10.89.7.1",
		"10.89.7.2":    "10.89.7.1", // the container's own would not come back
		"2001:db8::7":  "10.89.7.1",
		"169.254.1.2":  "10.89.7.1",
	} {
		c, err := g.Dial(t.Context(), netip.MustParseAddr(client), netip.AddrPortFrom(guest4.Addr(), 80))
		if err != nil {
			t.Fatal(err)
		}
		if got := say(t, c, "hi"); !strings.HasPrefix(got, want+":") {
			t.Errorf("client %s appears as %q, want %s", client, got, want)
		}
	}
}

func TestPublishedDatagramsAreAnswered(t *testing.T) {
	g, in := lab(t, 1500)
	inside, err := in.ListenPacket(netip.AddrPortFrom(guest4.Addr(), 53))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go func() {
		b := make([]byte, 65536)
		for {
			n, a, err := inside.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = inside.WriteTo(append([]byte("to "), b[:n]...), a)
		}
	}()
	outside, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero})
	if err != nil {
		t.Fatal(err)
	}
	p, err := g.PublishUDP(outside, netip.AddrPortFrom(guest4.Addr(), 53))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for client, to := range map[string]string{"one": "127.0.0.1", "two": "127.0.0.2"} { // answers come from the address that was asked
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(to), port(outside.LocalAddr())).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			if _, err := c.Write([]byte(client)); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, err := c.Read(b)
			if err != nil || string(b[:n]) != "to "+client {
				t.Errorf("%q, %v", b[:n], err)
			}
		}
	}
}

func TestServersOfTheGatewayComeBeforeTheLoopbackDevice(t *testing.T) {
	g, in := lab(t, 1500)
	ls, err := g.Listen(53)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		go echo(l)
	}
	for _, to := range []netip.Prefix{gateway4, gateway6} {
		c, err := in.Dial(t.Context(), "tcp", at(to, 53))
		if err != nil {
			t.Fatal(err)
		}
		if got := say(t, c, "who?"); !strings.HasSuffix(got, "who?") {
			t.Errorf("answer %q", got)
		}
	}
	if _, err := g.ListenPacket(53); err != nil {
		t.Fatal(err)
	}
}

func TestGatewayAnswersPings(t *testing.T) {
	_, in := lab(t, 1500)
	for _, to := range []netip.Prefix{gateway4, gateway6} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := in.Ping(ctx, to.Addr()); err != nil {
			t.Errorf("ping %s: %v", to, err)
		}
		cancel()
	}
}

func TestCloseEndsWhatIsOpen(t *testing.T) {
	l := outer(t, "127.0.0.1:0")
	g, in := lab(t, 1500)
	c, err := in.Dial(t.Context(), "tcp", at(gateway4, port(l.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	up, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	g.Close()
	if n, err := up.Read(make([]byte, 1)); err == nil {
		t.Errorf("the connection outlives the gateway: %d bytes", n)
	}
	if _, err := g.Publish(outer(t, "127.0.0.1:0"), netip.AddrPortFrom(guest4.Addr(), 1)); !errors.Is(err, errClosed) {
		t.Errorf("publish after Close: %v", err)
	}
}

// addresses are those of interfaces, as net.InterfaceAddrs has them.
func addresses(all ...string) (as []net.Addr) {
	for _, a := range all {
		as = append(as, &net.IPNet{IP: net.ParseIP(a)})
	}
	return as
}

func TestPolicy(t *testing.T) {
	c := Config{Addresses: []netip.Prefix{gateway4, gateway6}, HostLoopback: true}
	internal, hostless, nowhere, refusing := c, c, c, c
	internal.Internal, hostless.HostLoopback, nowhere.HostLoopback = true, false, false
	hostless.interfaces = func() ([]net.Addr, error) {
		return addresses("127.0.0.1", "::1", "fe80::5", "192.0.2.7", "192.0.2.8", "2001:db8::7"), nil
	}
	nowhere.interfaces = func() ([]net.Addr, error) { return addresses("127.0.0.1", "::1", "fe80::5"), nil }
	refusing.Refused = func(a netip.Addr) bool { return netip.MustParsePrefix("10.0.0.0/8").Contains(a) }
	for _, x := range []struct {
		name string
		c    *Config
		to   string
		want string // empty: refused
	}{
		{"outside", &c, "192.0.2.1", "192.0.2.1"},
		{"outside", &c, "2001:db8::1", "2001:db8::1"},
		{"outside", &internal, "192.0.2.1", ""},
		{"outside", &refusing, "10.2.3.4", ""},
		{"gateway", &c, "10.89.7.1", "127.0.0.1"},
		{"gateway", &c, "fd00:89:7::1", "::1"},
		{"gateway", &hostless, "10.89.7.1", "192.0.2.7"},
		{"gateway", &hostless, "fd00:89:7::1", "2001:db8::7"},
		{"gateway", &nowhere, "10.89.7.1", ""},
		{"gateway", &nowhere, "fd00:89:7::1", ""},
		{"gateway", &internal, "10.89.7.1", ""},
		{"own subnet", &c, "10.89.7.9", ""},
		{"own subnet", &c, "fd00:89:7::9", ""},
		{"loopback", &c, "127.0.0.1", ""},
		{"loopback", &c, "127.9.9.9", ""},
		{"loopback", &c, "::1", ""},
		{"loopback in disguise", &c, "::ffff:127.0.0.1", ""},
		{"this host", &c, "0.0.0.0", ""},
		{"this host", &c, "0.1.2.3", ""},
		{"this host", &c, "::", ""},
		{"many", &c, "224.0.0.251", ""},
		{"many", &c, "255.255.255.255", ""},
		{"many", &c, "ff02::1", ""},
		{"metadata", &c, "169.254.169.254", ""},
		{"metadata", &c, "fe80::1", ""},
		{"metadata", &c, "fd00:ec2::254", ""},
		{"metadata", &c, "fd20:ce::254", ""},
		{"metadata", &c, "fd00:c1::a9fe:a9fe", ""},
		{"metadata", &c, "100.100.100.200", ""},
		{"its neighbour", &c, "100.100.100.201", "100.100.100.201"},
	} {
		got, ok := x.c.outside(netip.MustParseAddr(x.to))
		if ok != (x.want != "") || ok && got.String() != x.want {
			t.Errorf("%s %s: %v, %v, want %q", x.name, x.to, got, ok, x.want)
		}
	}
}

// One container that opens all it can leaves something for the next one.
func TestContainersShareTheGateway(t *testing.T) {
	g, in := lab(t, 1500)
	g.tcp = share.New[netip.Addr](8)
	l := outer(t, "127.0.0.1:0")
	other := guest4.Addr().Next()
	open := 0
	for ; open < 9; open++ {
		c, err := in.Dial(t.Context(), "tcp", at(gateway4, port(l.Addr())))
		if err != nil {
			break
		}
		defer c.Close()
	}
	if open != 4 || !g.tcp.Take(other) {
		t.Errorf("one container has %d connections of 8, want half; another gets some", open)
	}
	up, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	to := outer(t, "127.0.0.1:0")
	published, err := g.Publish(to, netip.AddrPortFrom(guest4.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	defer published.Close()
	c, err := net.Dial("tcp", to.Addr().String())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("its published port, when it has its share: %v, want a reset", err)
	}
	up.Close()
}
