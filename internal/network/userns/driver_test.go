package userns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/network"
	"den/internal/testkit"
)

func TestMain(m *testing.M) {
	if network.Main(Link()) {
		return
	}
	os.Exit(m.Run())
}

const inside = "DEN_TEST_IN_USERNS"

// enter runs the test again in a user namespace, as the rung does: the network namespace
// stays that of the outside. It returns true there.
func enter(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skip("needs user namespaces")
	}
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("in a user namespace:\n%s", out)
	}
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// networks are an engine's, on this driver.
func networks(t *testing.T) *network.Networks {
	t.Helper()
	return networksIn(t, filepath.Join(t.TempDir(), "networks"), network.Options{MTU: 1500})
}

func networksIn(t *testing.T, dir string, o network.Options) *network.Networks {
	t.Helper()
	ns, err := network.NewNamespace()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	must(t, ns.Close())
	d, err := New(dir)
	must(t, err)
	all, err := network.Open(dir, d, o)
	must(t, err)
	t.Cleanup(func() {
		if err := all.Reconcile(context.Background(), func(string) bool { return false }); err != nil {
			t.Error(err)
		}
	})
	return all
}

// A container is a network namespace in which the test makes sockets.
type container struct {
	ns *os.File
	e  network.Endpoint
}

func attach(t *testing.T, all *network.Networks, name string, r network.EndpointRequest) *container {
	t.Helper()
	r.Name = name
	s, es, err := all.Attach(t.Context(), name, []network.EndpointRequest{r})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return &container{s.Namespace(), es[0]}
}

func (c *container) dial(t *testing.T, kind string, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	var conn net.Conn
	err := network.In(c.ns, func() (err error) {
		conn, err = net.DialTimeout(kind, to.String(), time.Minute)
		return err
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		err = conn.SetDeadline(time.Now().Add(time.Minute))
	}
	return conn, err
}

// listen listens in a namespace; nil is the present one.
func listen(t *testing.T, ns *os.File, address string) (l net.Listener) {
	t.Helper()
	must(t, network.In(ns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	t.Cleanup(func() { l.Close() })
	return l
}

// serve answers connections with the client's address and what it sent.
func serve(t *testing.T, ns *os.File, address string) netip.AddrPort {
	t.Helper()
	l := listen(t, ns, address)
	go testkit.Accept(l, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "%s %s", c.RemoteAddr().(*net.TCPAddr).IP, b)
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func say(t *testing.T, c net.Conn, err error, text string) string {
	t.Helper()
	must(t, err)
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	must(t, c.(*net.TCPConn).CloseWrite())
	b, err := io.ReadAll(c)
	must(t, err)
	return string(b)
}

func TestContainersReachEachOtherTheOutsideAndTheirPorts(t *testing.T) {
	if !enter(t) {
		return
	}
	all := networks(t)
	n, err := all.Create(t.Context(), network.CreateRequest{Name: "app", IPv6: true})
	must(t, err)
	ports := []network.Port{{Protocol: "tcp", Container: 80, HostIP: netip.MustParseAddr("127.0.0.1")}}
	a := attach(t, all, "a1", network.EndpointRequest{Network: "app", Ports: ports})
	b := attach(t, all, "b2", network.EndpointRequest{Network: "app"})
	serve(t, a.ns, ":80")

	// By name, over the bridge.
	resolver := &net.Resolver{PreferGo: true, Dial: func(_ context.Context, kind, _ string) (net.Conn, error) {
		return b.dial(t, kind, netip.AddrPortFrom(n.Gateways()[0], 53))
	}}
	as, err := resolver.LookupNetIP(t.Context(), "ip", "a1.")
	if err != nil || len(as) != 2 {
		t.Fatalf("a1: %v, %v, want an address of each family", as, err)
	}
	for _, x := range as {
		c, err := b.dial(t, "tcp", netip.AddrPortFrom(x.Unmap(), 80))
		if got := say(t, c, err, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("a1 at %s says %q", x, got)
		}
	}
	// Outside: the gateway leads to the loopback device; much of it, by the super-packets of the kernel.
	outer := serve(t, nil, "127.0.0.1:0")
	text := strings.Repeat("all of it. ", 400000)
	c, err := b.dial(t, "tcp", netip.AddrPortFrom(n.Gateways()[0], outer.Port()))
	if got := say(t, c, err, text); got != "127.0.0.1 "+text {
		t.Errorf("outside: %d bytes came back, want %d", len(got), len(text))
	}
	// A published port: the gateway is the client.
	c, err = net.Dial("tcp", netip.AddrPortFrom(a.e.Ports[0].HostIP, a.e.Ports[0].Host).String())
	if got, want := say(t, c, err, text), n.Gateways()[0].String()+" "+text; got != want {
		t.Errorf("published: %d bytes came back, want %d", len(got), len(want))
	}
}

func TestClosedPortsAndStrangersAreRefused(t *testing.T) {
	if !enter(t) {
		return
	}
	all := networks(t)
	n, err := all.Create(t.Context(), network.CreateRequest{Name: "app"})
	must(t, err)
	c := attach(t, all, "c1", network.EndpointRequest{Network: "app"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := l.Addr().(*net.TCPAddr).AddrPort().Port()
	must(t, l.Close())
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(n.Gateways()[0], closed), netip.MustParseAddrPort("169.254.169.254:80")} {
		if _, err := c.dial(t, "tcp", to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("TCP to %s: %v, want refused", to, err)
		}
		u, err := c.dial(t, "udp", to)
		must(t, err)
		if _, err := u.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("UDP to %s: %v, want refused", to, err)
		}
	}
}

func TestLargeDatagramsPassTheGateway(t *testing.T) {
	if !enter(t) {
		return
	}
	outside, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
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
	all := networks(t)
	n, err := all.Create(t.Context(), network.CreateRequest{Name: "app"})
	must(t, err)
	c := attach(t, all, "c1", network.EndpointRequest{Network: "app"})
	u, err := c.dial(t, "udp", netip.AddrPortFrom(n.Gateways()[0], outside.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
	must(t, err)
	want, got := bytes.Repeat([]byte("0123456789"), 6000), make([]byte, 65536)
	if _, err := u.Write(want); err != nil {
		t.Fatal(err)
	}
	k, err := u.Read(got)
	if err != nil || !bytes.Equal(got[:k], want) {
		t.Errorf("%d bytes came back: %v", k, err)
	}
}
