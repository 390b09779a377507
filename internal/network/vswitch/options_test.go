package vswitch

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"den/internal/network"
)

func TestMTUThatIsAskedForIsTheDevices(t *testing.T) {
	for _, c := range []struct {
		engine  int
		network string
		want    int
	}{{0, "", MTU}, {1400, "", 1400}, {1400, "1300", 1300}, {0, "65535", MTU}} {
		ns := openWith(t, network.Options{MTU: c.engine})
		r := network.CreateRequest{Name: "app", Options: map[string]string{}}
		if c.network != "" {
			r.Options["com.docker.network.driver.mtu"] = c.network
		}
		create(t, ns, r)
		a, b := run(t, ns, "a1", network.EndpointRequest{Network: "app"}), run(t, ns, "b2", network.EndpointRequest{Network: "app"})
		if got := a.mtu; got != c.want {
			t.Errorf("engine %d, network %q: MTU %d, want %d", c.engine, c.network, got, c.want)
		}
		a.serve(t, 80, "a: ")
		if got := ask(t, b.Dial, netip.AddrPortFrom(a.e.IPv4.Addr(), 80).String(), "hello"); got != "a: hello" {
			t.Errorf("engine %d, network %q: it says %q", c.engine, c.network, got)
		}
	}
}

func TestContainersMayBeKeptFromTheOuterLoopback(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ns := openWith(t, network.Options{NoHostLoopback: true})
	n := create(t, ns, network.CreateRequest{Name: "app"})
	c := run(t, ns, "c1", network.EndpointRequest{Network: "app"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if conn, err := c.Dial(ctx, "tcp", netip.AddrPortFrom(n.Gateways()[0], l.Addr().(*net.TCPAddr).AddrPort().Port()).String()); err == nil {
		t.Error("the outer loopback device answers", conn.Close())
	}
	if ctx.Err() != nil {
		t.Error("it is not refused, but silent")
	}
}
