package network

import (
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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ownNetworkEnv = "DEN_TEST_OWN_NETWORK"

// ownNetwork runs the test again in a process with a network namespace of its own and
// returns false; in that process it returns true.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownNetworkEnv) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes bridges in a network namespace of its own")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), ownNetworkEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs CAP_SYS_ADMIN: makes a network namespace")
	}
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("in a network of its own:\n%s", out)
	}
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a network namespace beyond the outer one: 192.0.2.1 there, 192.0.2.2 here.
func world(t *testing.T) *os.File {
	t.Helper()
	ns, err := NewNamespace()
	must(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "outer0", 1400
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "world0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}))
	up := func(name, address string) netlink.Link {
		link, err := netlink.LinkByName(name)
		must(t, err)
		must(t, addAddress(link, netip.MustParsePrefix(address)))
		must(t, netlink.LinkSetUp(link))
		return link
	}
	must(t, In(ns, func() error {
		up("world0", "192.0.2.1/24")
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(192, 0, 2, 2)})
	}))
	up("outer0", "192.0.2.2/24")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(192, 0, 2, 1)}))
	return ns
}

// whoami listens in ns and tells each client its address.
func whoami(t *testing.T, ns *os.File, network, address string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		var c net.PacketConn
		must(t, In(ns, func() (err error) {
			c, err = net.ListenPacket("udp", address)
			return err
		}))
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
			}
		}()
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	var l net.Listener
	must(t, In(ns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String())
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// ask connects from ns and returns what the server says.
func askIn(ns *os.File, network string, to netip.AddrPort, timeout time.Duration) (string, error) {
	var c net.Conn
	err := In(ns, func() (err error) {
		c, err = net.DialTimeout(network, to.String(), timeout)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("who")); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

const (
	patience = 20 * time.Second
	// A packet that is dropped has this long to prove the opposite.
	silence = 300 * time.Millisecond
)

// bridges opens networks on the bridge driver; all is gone at the end, or the test fails.
func bridges(t *testing.T) *Networks {
	t.Helper()
	return bridgesWith(t, Options{})
}

func bridgesWith(t *testing.T, o Options) *Networks {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "networks")
	d, err := NewBridge(dir)
	must(t, err)
	ns, err := Open(dir, d, o)
	must(t, err)
	t.Cleanup(func() {
		if err := ns.Reconcile(context.Background(), func(string) bool { return false }); err != nil {
			t.Error(err)
		}
		links, err := netlink.LinkList()
		if err != nil {
			t.Error(err)
		}
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, "den") {
				t.Errorf("left: device %s", l.Attrs().Name)
			}
		}
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		tables, err := c.ListTables()
		if err != nil || len(tables) > 0 {
			t.Errorf("left: tables %v, %v", tables, err)
		}
	})
	return ns
}

func join(t *testing.T, ns *Networks, container string, rs ...EndpointRequest) (*os.File, []Endpoint) {
	t.Helper()
	for i := range rs {
		rs[i].Name = container
	}
	s, es, err := ns.Attach(t.Context(), container, rs)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s.Namespace(), es
}

func expect(t *testing.T, what, want, got string, err error) {
	t.Helper()
	if err != nil || got != want {
		t.Errorf("%s: %q, %v; want %q", what, got, err, want)
	}
}

func TestBridgeCarriesContainers(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	outside := world(t)
	ns := bridges(t)
	n, err := ns.Create(t.Context(), CreateRequest{Name: "n", IPv6: true})
	must(t, err)
	if n.MTU != 1400 {
		t.Errorf("MTU %d, want the outer route's", n.MTU)
	}
	a, ea := join(t, ns, "a", EndpointRequest{Network: "n"})
	b, eb := join(t, ns, "b", EndpointRequest{Network: "n"})
	a4, a6, b4 := ea[0].IPv4.Addr(), ea[0].IPv6.Addr(), eb[0].IPv4.Addr()
	for _, network := range []string{"tcp", "udp"} {
		server := whoami(t, a, network, netip.AddrPortFrom(a4, 0).String())
		got, err := askIn(b, network, server, patience)
		expect(t, network+" from b to a", b4.String(), got, err)
		server = whoami(t, a, network, netip.AddrPortFrom(a6, 0).String())
		got, err = askIn(b, network, server, patience)
		expect(t, network+" from b to a by IPv6", eb[0].IPv6.Addr().String(), got, err)
		server = whoami(t, outside, network, "192.0.2.1:0")
		got, err = askIn(a, network, server, patience)
		expect(t, network+" from a to the world", "192.0.2.2", got, err)
	}
	server := whoami(t, a, "tcp", netip.AddrPortFrom(a4, 0).String())
	if got, err := askIn(outside, "tcp", server, silence); err == nil {
		t.Errorf("the world reaches a port that is not published: %q", got)
	}
	var m *dns.Msg
	must(t, In(b, func() error {
		c, err := net.DialTimeout("udp", netip.AddrPortFrom(n.Gateways()[0], 53).String(), patience)
		if err != nil {
			return err
		}
		m, _, err = (&dns.Client{Timeout: patience}).ExchangeWithConn(new(dns.Msg).SetQuestion("a.", dns.TypeAAAA), &dns.Conn{Conn: c})
		return err
	}))
	if len(m.Answer) != 1 || m.Answer[0].(*dns.AAAA).AAAA.String() != a6.String() {
		t.Errorf("a is %v", m)
	}
}

// A network that lingers is the same for its next container, which gets the address of the
// last one and is reached there at once.
func TestLingeringBridgeServesTheNextContainer(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	world(t)
	ns := bridgesWith(t, Options{Linger: true})
	n, err := ns.Network(t.Context(), DefaultName)
	must(t, err)
	client, _ := join(t, ns, "client", EndpointRequest{Network: DefaultName})
	var bridge int
	for i, name := range []string{"a", "b", "c"} {
		space, es := join(t, ns, name, EndpointRequest{Network: DefaultName})
		if got, want := es[0].IPv4.Addr().String(), n.Gateways()[0].Next().Next().String(); got != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
		got, err := askIn(client, "tcp", whoami(t, space, "tcp", netip.AddrPortFrom(es[0].IPv4.Addr(), 0).String()), patience)
		expect(t, "to "+name, n.Gateways()[0].Next().String(), got, err)
		must(t, ns.Release(t.Context(), name))
		if i == 1 { // also without any
			must(t, ns.Release(t.Context(), "client"))
			client, _ = join(t, ns, "client", EndpointRequest{Network: DefaultName})
		}
		link, err := netlink.LinkByName(bridgeName(n))
		must(t, err)
		if bridge == 0 {
			bridge = link.Attrs().Index
		}
		if link.Attrs().Index != bridge {
			t.Errorf("after %s the bridge is another one", name)
		}
	}
	must(t, ns.Release(t.Context(), "client"))
	must(t, ns.Settle(t.Context()))
	if _, err := netlink.LinkByName(bridgeName(n)); !gone(err) {
		t.Errorf("the bridge is there after Settle: %v", err)
	}
}

func TestNetworksReachEachOtherByPublishedPortsOnly(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	outside := world(t)
	ns := bridges(t)
	for _, r := range []CreateRequest{{Name: "one"}, {Name: "two"}, {Name: "inner", Internal: true}, {Name: "alone", Options: map[string]string{optionICC: "false"}}} {
		_, err := ns.Create(t.Context(), r)
		must(t, err)
	}
	c, _ := join(t, ns, "c", EndpointRequest{Network: "two"})
	a, ea := join(t, ns, "a", EndpointRequest{Network: "one", Ports: []Port{{Protocol: "tcp", Container: 80}, {Protocol: "udp", Container: 80}}})
	if len(ea[0].Ports) != 4 { // each on 0.0.0.0 and on ::
		t.Fatalf("ports %v", ea[0].Ports)
	}
	for _, network := range []string{"tcp", "udp"} {
		server := whoami(t, a, network, ":80")
		server = netip.AddrPortFrom(ea[0].IPv4.Addr(), server.Port())
		if got, err := askIn(c, network, server, silence); err == nil {
			t.Errorf("%s: another network reaches a: %q", network, got)
		}
		for _, p := range ea[0].Ports {
			if p.Protocol != network || p.HostIP.Is6() {
				continue
			}
			gateway := "172.18.0.1" // den-net's address on a's bridge
			got, err := askIn(c, network, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), p.Host), patience)
			expect(t, network+" from another network to a published port", gateway, got, err)
			client := gateway
			if network == "tcp" {
				client = "192.0.2.1"
			}
			got, err = askIn(outside, network, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), p.Host), patience)
			expect(t, network+" from the world", client, got, err)
			got, err = askIn(nil, network, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.Host), patience)
			expect(t, network+" from here", gateway, got, err)
			got, err = askIn(a, network, netip.AddrPortFrom(netip.MustParseAddr("172.18.0.1"), p.Host), patience)
			expect(t, network+" from a to itself by the gateway", gateway, got, err)
		}
	}
	i, ei := join(t, ns, "i", EndpointRequest{Network: "inner"})
	j, _ := join(t, ns, "j", EndpointRequest{Network: "inner"})
	server := whoami(t, i, "tcp", netip.AddrPortFrom(ei[0].IPv4.Addr(), 0).String())
	if _, err := askIn(j, "tcp", server, patience); err != nil {
		t.Errorf("inside an internal network: %v", err)
	}
	if got, err := askIn(i, "tcp", whoami(t, outside, "tcp", "192.0.2.1:0"), silence); err == nil {
		t.Errorf("an internal network reaches the world: %q", got)
	}
	k, ek := join(t, ns, "k", EndpointRequest{Network: "alone"})
	l, _ := join(t, ns, "l", EndpointRequest{Network: "alone"})
	server = whoami(t, k, "tcp", netip.AddrPortFrom(ek[0].IPv4.Addr(), 0).String())
	if got, err := askIn(l, "tcp", server, silence); err == nil {
		t.Errorf("without inter-container communication l reaches k: %q", got)
	}
	if _, err := askIn(l, "tcp", whoami(t, outside, "tcp", "192.0.2.1:0"), patience); err != nil {
		t.Errorf("from l to the world: %v", err)
	}
}

func TestContainersMoveBetweenNetworks(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	outside := world(t)
	ns := bridges(t)
	for _, name := range []string{"one", "two"} {
		_, err := ns.Create(t.Context(), CreateRequest{Name: name})
		must(t, err)
	}
	a, ea := join(t, ns, "a", EndpointRequest{Network: "one", Ports: []Port{{Protocol: "tcp", Container: 80}}})
	c, ec := join(t, ns, "c", EndpointRequest{Network: "two"})
	whoami(t, a, "tcp", ":80")
	s := &kernelSpace{a}
	e, err := ns.Connect(t.Context(), "a", 0, s, EndpointRequest{Network: "two", Name: "a"})
	must(t, err)
	got, err := askIn(c, "tcp", netip.AddrPortFrom(e.IPv4.Addr(), 80), patience)
	expect(t, "on the second network", ec[0].IPv4.Addr().String(), got, err)
	must(t, ns.Disconnect(t.Context(), "a", s, "one", false))
	got, err = askIn(a, "tcp", whoami(t, outside, "tcp", "192.0.2.1:0"), patience)
	expect(t, "to the world by the second network", "192.0.2.2", got, err)
	got, err = askIn(outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), ea[0].Ports[0].Host), patience)
	expect(t, "to the published port that moved", "192.0.2.1", got, err)
	if all, err := ReadEndpoints(filepath.Join(ns.dir, ea[0].Network)); err != nil || len(all) != 0 {
		t.Errorf("the first network has %v, %v", all, err)
	}
}

func TestBridgeComesBackAfterACrash(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	outside := world(t)
	ns := bridges(t)
	n, err := ns.Create(t.Context(), CreateRequest{Name: "n"})
	must(t, err)
	a, ea := join(t, ns, "a", EndpointRequest{Network: "n", Ports: []Port{
		{Protocol: "tcp", Container: 80}, {Protocol: "tcp", Container: 81, HostIP: netip.MustParseAddr("192.0.2.2")},
	}})
	join(t, ns, "dead", EndpointRequest{Network: "n"})
	whoami(t, a, "tcp", ":80")
	hello, _, err := call(t.Context(), ns.network(n.ID), request{Op: opHello})
	must(t, err)
	must(t, syscall.Kill(hello.PID, syscall.SIGKILL))
	must(t, removeRules(n))
	must(t, ns.Reconcile(t.Context(), func(c string) bool { return c == "a" }))
	got, err := askIn(outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), ea[0].Ports[0].Host), patience)
	expect(t, "published port", "192.0.2.1", got, err)
	got, err = askIn(nil, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ea[0].Ports[0].Host), patience)
	expect(t, "published port from here", "172.18.0.1", got, err)
	closed := ea[0].Ports[len(ea[0].Ports)-1]
	if got, err := askIn(outside, "tcp", netip.AddrPortFrom(closed.HostIP, closed.Host), patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a published port where nobody listens: %q, %v; want refused", got, err)
	}
	got, err = askIn(a, "tcp", whoami(t, outside, "tcp", "192.0.2.1:0"), patience)
	expect(t, "masquerade", "192.0.2.2", got, err)
	if es, err := ns.Endpoints(t.Context(), n.ID); err != nil || len(es) != 1 {
		t.Errorf("endpoints %v, %v", es, err)
	}
	// A second one of the same port is refused in docker's words.
	_, _, err = ns.Attach(t.Context(), "b", []EndpointRequest{{Network: "n", Name: "b", Ports: []Port{{Protocol: "tcp", Container: 80, Host: ea[0].Ports[0].Host}}}})
	if want := fmt.Sprintf("Bind for 0.0.0.0:%d failed: port is already allocated", ea[0].Ports[0].Host); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the same port again: %v, want %q", err, want)
	}
}

func TestDevicesThatWereLostComeBack(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	outside := world(t)
	ns := bridges(t)
	n, err := ns.Create(t.Context(), CreateRequest{Name: "n"})
	must(t, err)
	a, ea := join(t, ns, "a", EndpointRequest{Network: "n"})
	b, _ := join(t, ns, "b", EndpointRequest{Network: "n"})
	server := whoami(t, outside, "tcp", "192.0.2.1:0")
	inA := whoami(t, a, "tcp", netip.AddrPortFrom(ea[0].IPv4.Addr(), 0).String())
	// A process in a's namespace, as its payload is.
	pid := sleeper(t, a)
	ns.Locate(func(container string) int {
		if container == "a" {
			return pid
		}
		return 0
	})
	link, err := netlink.LinkByName(bridgeName(n))
	must(t, err)
	must(t, netlink.LinkDel(link))
	must(t, Unplug(&ea[0]))
	must(t, ns.Reconcile(t.Context(), func(string) bool { return true }))
	got, err := askIn(a, "tcp", server, patience)
	expect(t, "from a", "192.0.2.2", got, err)
	if got, err := askIn(b, "tcp", server, silence); err == nil {
		t.Errorf("b, which nobody located, is back: %q", got)
	}
	got, err = askIn(nil, "tcp", inA, patience)
	expect(t, "to a's socket, which outlived its device", "172.18.0.1", got, err)
}

// sleeper starts a process in ns.
func sleeper(t *testing.T, ns *os.File) int {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", "-test.run=^$") // the end of its input ends it
	cmd.Env = append(os.Environ(), sleepEnv+"=1")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, In(ns, cmd.Start)) // clone(2) takes the thread's namespace along
	t.Cleanup(func() {
		must(t, in.Close())
		must(t, cmd.Wait())
	})
	return cmd.Process.Pid
}

func TestForeignBridgeStays(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	ns := bridges(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "theirs"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	_, err := ns.Create(t.Context(), CreateRequest{Name: "n", Options: map[string]string{optionBridgeName: "theirs"}})
	must(t, err)
	_, _, err = ns.Attach(t.Context(), "a", []EndpointRequest{{Network: "n", Name: "a"}})
	if err == nil || !strings.Contains(err.Error(), "not this network's") {
		t.Errorf("attach: %v", err)
	}
	if _, err := netlink.LinkByName("theirs"); err != nil {
		t.Errorf("their bridge: %v", err)
	}
}

func TestThreadsDoNotStayInANamespace(t *testing.T) {
	ns, err := NewNamespace()
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs CAP_SYS_ADMIN: makes a network namespace")
	}
	must(t, err)
	defer ns.Close()
	before, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	for range 20 {
		must(t, In(ns, func() error { return nil }))
		_ = In(ns, func() error { return errors.New("x") })
	}
	var wg sync.WaitGroup
	for range 50 { // on as many threads as there are
		wg.Go(func() {
			for _, file := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net"} {
				if now, err := os.Readlink(file); err != nil || now != before {
					t.Errorf("%s is %s, %v; want %s", file, now, err, before)
				}
			}
		})
	}
	wg.Wait()
}
