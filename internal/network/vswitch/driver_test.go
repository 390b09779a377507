package vswitch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/network"
	"den/internal/network/guest"
	"den/internal/oci"
	"den/internal/testkit"
)

// open is an engine's networks on a switch that leads nowhere but to the loopback device.
func open(t testing.TB) *network.Networks {
	t.Helper()
	return openWith(t, network.Options{})
}

func openWith(t testing.TB, o network.Options) *network.Networks {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(Options{ResolvConf: conf})
	t.Cleanup(func() { d.Close() })
	ns, err := network.Open(t.TempDir(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func create(t testing.TB, ns *network.Networks, r network.CreateRequest) *network.Network {
	t.Helper()
	n, err := ns.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A container is a guest with its endpoint.
type container struct {
	*guest.Guest
	id    string
	space network.Space
	e     network.Endpoint
	mtu   int
}

func run(t testing.TB, ns *network.Networks, name string, r network.EndpointRequest) *container {
	t.Helper()
	id := strings.Repeat(fmt.Sprintf("%02x", name[len(name)-1]), 32)
	r.Name = name
	s, es, err := ns.Attach(t.Context(), id, []network.EndpointRequest{r})
	if err != nil {
		t.Fatal(err)
	}
	device := s.Interfaces()[0]
	g, err := guest.New(device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	s.SetPlug(func(context.Context, oci.Interface) error { return nil }, func(context.Context, string) error { return unix.ENODEV })
	return &container{g, id, s, es[0], device.MTU}
}

// serve answers each connection to port with text and what it was sent.
func (c *container) serve(t testing.TB, port uint16, text string) {
	t.Helper()
	for _, p := range []netip.Prefix{c.e.IPv4, c.e.IPv6} {
		if !p.IsValid() {
			continue
		}
		l, err := c.Listen(netip.AddrPortFrom(p.Addr(), port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go testkit.Accept(l, func(conn net.Conn) {
			b, _ := io.ReadAll(conn)
			_, _ = conn.Write(append([]byte(text), b...))
		})
	}
}

func ask(t testing.TB, dial func(context.Context, string, string) (net.Conn, error), address, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := dial(ctx, "tcp", address)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
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

// resolver asks the network's DNS server as the container would.
func (c *container) resolver(server netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.Dial(ctx, network, netip.AddrPortFrom(server, 53).String())
	}}
}

func TestTwoServersOnOnePortReachEachOtherByNameAndAnswerOnLocalhost(t *testing.T) {
	ns := open(t)
	n := create(t, ns, network.CreateRequest{Name: "app", IPv6: true})
	port := func(at uint16) []network.Port {
		return []network.Port{{Protocol: "tcp", Container: 5432, HostIP: netip.MustParseAddr("127.0.0.1"), Host: at}}
	}
	db1 := run(t, ns, "db1", network.EndpointRequest{Network: "app", Ports: port(0)})
	db2 := run(t, ns, "db2", network.EndpointRequest{Network: "app", Ports: port(0)})
	db1.serve(t, 5432, "one ")
	db2.serve(t, 5432, "two ")
	for _, x := range []struct {
		from       *container
		name, want string
	}{{db1, "db2", "two hello"}, {db2, "db1", "one hello"}} {
		as, err := x.from.resolver(n.Gateways()[0]).LookupNetIP(t.Context(), "ip", x.name+".")
		if err != nil || len(as) != 2 {
			t.Fatalf("%s: %v, %v, want an address of each family", x.name, as, err)
		}
		for _, a := range as {
			if got := ask(t, x.from.Dial, netip.AddrPortFrom(a.Unmap(), 5432).String(), "hello"); got != x.want {
				t.Errorf("%s at %s says %q, want %q", x.name, a, got, x.want)
			}
		}
	}
	var d net.Dialer
	for _, x := range []struct {
		c    *container
		want string
	}{{db1, "one hi"}, {db2, "two hi"}} {
		at := netip.AddrPortFrom(x.c.e.Ports[0].HostIP, x.c.e.Ports[0].Host).String()
		if got := ask(t, d.DialContext, at, "hi"); got != x.want {
			t.Errorf("published at %s: %q, want %q", at, got, x.want)
		}
	}
	if err := ns.Release(t.Context(), db1.id); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", netip.AddrPortFrom(db1.e.Ports[0].HostIP, db1.e.Ports[0].Host).String()); err == nil {
		c.Close()
		t.Error("the port of a container that has ended is still open")
	}
}

func TestContainerReachesTheOuterLoopbackByItsGateway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	ns := open(t)
	outer := create(t, ns, network.CreateRequest{Name: "out"})
	inner := create(t, ns, network.CreateRequest{Name: "in", Internal: true})
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	c := run(t, ns, "c1", network.EndpointRequest{Network: "out"})
	if got := ask(t, c.Dial, netip.AddrPortFrom(outer.Gateways()[0], port).String(), "hi"); got != "hi" {
		t.Errorf("outside: %q", got)
	}
	shut := run(t, ns, "c2", network.EndpointRequest{Network: "in"})
	if _, err := shut.Dial(t.Context(), "tcp", netip.AddrPortFrom(inner.Gateways()[0], port).String()); err == nil {
		t.Error("an internal network leads outside")
	}
	// Networks reach each other by published ports only.
	other := run(t, ns, "c3", network.EndpointRequest{Network: "in"})
	other.serve(t, 80, "inner ")
	if _, err := c.Dial(t.Context(), "tcp", netip.AddrPortFrom(other.e.IPv4.Addr(), 80).String()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("another network: %v, want refused", err)
	}
}

func TestLargeDatagramsPassBetweenContainers(t *testing.T) {
	ns := open(t)
	create(t, ns, network.CreateRequest{Name: "app"})
	a := run(t, ns, "c1", network.EndpointRequest{Network: "app"})
	b := run(t, ns, "c2", network.EndpointRequest{Network: "app"})
	at := netip.AddrPortFrom(b.e.IPv4.Addr(), 7)
	in, err := b.ListenPacket(at)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := a.Dial(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	want := bytes.Repeat([]byte("0123456789"), 6000)
	if _, err := out.Write(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 65536)
	k, _, err := in.ReadFrom(got)
	if err != nil || !bytes.Equal(got[:k], want) {
		t.Errorf("%d bytes: %v", k, err)
	}
}

func TestDeviceIsPluggedIntoARunningSandbox(t *testing.T) {
	ns := open(t)
	for _, name := range []string{"one", "two"} {
		create(t, ns, network.CreateRequest{Name: name})
	}
	c := run(t, ns, "c1", network.EndpointRequest{Network: "one"})
	peer := run(t, ns, "c2", network.EndpointRequest{Network: "two"})
	peer.serve(t, 80, "two ")
	plugged := make(chan *guest.Guest, 1)
	var unplugged []string
	c.space.SetPlug(func(_ context.Context, i oci.Interface) error {
		g, err := guest.New(i)
		plugged <- g
		return err
	}, func(_ context.Context, name string) error {
		unplugged = append(unplugged, name)
		return nil
	})
	if _, err := ns.Connect(t.Context(), c.id, 0, nil, network.EndpointRequest{Network: "two", Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	g := <-plugged
	defer g.Close()
	if got := ask(t, g.Dial, netip.AddrPortFrom(peer.e.IPv4.Addr(), 80).String(), "hi"); got != "two hi" {
		t.Errorf("by the new device: %q", got)
	}
	unplugged = nil
	if err := ns.Disconnect(t.Context(), c.id, c.space, "two", false); err != nil {
		t.Fatal(err)
	}
	if len(unplugged) != 1 || unplugged[0] != "eth1" {
		t.Errorf("unplugged %v, want eth1", unplugged)
	}
}

func TestIsolatedContainersReachOnlyTheGateway(t *testing.T) {
	ns := open(t)
	n := create(t, ns, network.CreateRequest{Name: "app", Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}})
	a := run(t, ns, "c1", network.EndpointRequest{Network: "app"})
	b := run(t, ns, "c2", network.EndpointRequest{Network: "app"})
	b.serve(t, 80, "b ")
	if err := a.Ping(t.Context(), n.Gateways()[0]); err != nil {
		t.Fatal(err)
	}
	if c, err := a.Dial(t.Context(), "tcp", netip.AddrPortFrom(b.e.IPv4.Addr(), 80).String()); err == nil {
		c.Close()
		t.Error("isolated containers reach each other")
	}
}
