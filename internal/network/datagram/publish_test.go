package datagram

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// echo answers datagrams at an address.
func echo(t *testing.T, at string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(append([]byte("to "), b[:n]...), from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// published leads a port of all addresses to a socket of this machine.
func published(t *testing.T, to netip.AddrPort, limit int, idle time.Duration) (*publication, *atomic.Int32) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero})
	if err != nil {
		t.Fatal(err)
	}
	return publishedOn(t, c, to, limit, idle)
}

func publishedOn(t *testing.T, c *net.UDPConn, to netip.AddrPort, limit int, idle time.Duration) (*publication, *atomic.Int32) {
	t.Helper()
	dialled := new(atomic.Int32)
	buffers := new(Buffers)
	p, err := publish(c, func(netip.Addr) (Socket, error) {
		dialled.Add(1)
		in, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return nil, err
		}
		return Kernel(in, buffers)
	}, limit, idle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, dialled
}

// client is a socket that talks to p at an address.
func client(t *testing.T, p *publication, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(address), p.c.LocalAddr().(*net.UDPAddr).AddrPort().Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends text until an answer comes.
func ask(t *testing.T, c net.Conn, text string) {
	t.Helper()
	b := make([]byte, 100)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(b); err == nil {
			if string(b[:n]) != "to "+text {
				t.Errorf("answer %q", b[:n])
			}
			return
		}
	}
	t.Fatalf("no answer to %s", text)
}

// A client drops what comes from another address than it wrote to.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	p, _ := published(t, echo(t, "127.0.0.1:0"), MaxFlows, Idle)
	for _, address := range []string{"127.0.0.1", "127.0.0.2"} {
		ask(t, client(t, p, address), address)
	}
	// One socket that writes to both has two flows.
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, address := range []string{"127.0.0.1", "127.0.0.2"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(address), p.c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, from, err := c.ReadFromUDPAddrPort(make([]byte, 10)); err != nil || from != to {
			t.Errorf("%s was asked, %s answers: %v", to, from, err)
		}
	}
}

func TestPortOfIPv6LeadsToAContainerWithIPv4(t *testing.T) {
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified})
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	p, _ := publishedOn(t, c, echo(t, "127.0.0.1:0"), MaxFlows, Idle)
	ask(t, client(t, p, "::1"), "six")
}

func TestFlowOutlivesARefusal(t *testing.T) {
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := l.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	p, dialled := published(t, to, MaxFlows, Idle)
	c := client(t, p, "127.0.0.1")
	for range 3 {
		if _, err := c.Write([]byte("now")); err != nil {
			t.Fatal(err)
		}
	}
	echo(t, to.String())
	ask(t, c, "now")
	if n := dialled.Load(); n != 1 {
		t.Errorf("%d flows of one client", n)
	}
}

func TestPublicationEndsWithAllItsFlows(t *testing.T) {
	p, _ := published(t, echo(t, "127.0.0.1:0"), MaxFlows, Idle)
	ask(t, client(t, p, "127.0.0.1"), "x")
	if err := p.Close(); err != nil { // waits for its goroutines
		t.Fatal(err)
	}
	if p.flows.Add(route{}, &Flow{In: closed{}}) {
		t.Error("a flow begins after Close")
	}
}

func TestSilentFlowsOfAPublicationEnd(t *testing.T) {
	p, dialled := published(t, echo(t, "127.0.0.1:0"), MaxFlows, time.Millisecond)
	c := client(t, p, "127.0.0.1")
	for end := time.Now().Add(time.Minute); dialled.Load() < 2; {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the first flow does not end")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
