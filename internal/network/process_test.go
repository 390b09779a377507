package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"den/internal/testkit"
)

// sleepEnv makes this program wait for the end of its standard input.
const sleepEnv = "DEN_TEST_SLEEP"

// TestMain lets the test's own program be a den-net, with one more driver.
func TestMain(m *testing.M) {
	if Main(Link{Driver: "loop", Open: openLoop}) {
		return
	}
	if os.Getenv(sleepEnv) != "" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	if dir := os.Getenv(crashEnv); dir != "" {
		if err := liveOnce(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A loopSide is a kernelSide whose gateway is the loopback device: no root, no bridge.
type loopSide struct {
	kernelSide
	dir string
}

func openLoop(_ context.Context, dir string, n *Network) (Side, error) {
	return &loopSide{kernelSide{n: n, streams: NewStreams()}, dir}, nil
}

func (l *loopSide) Listen(uint16) ([]net.Listener, error) {
	s, err := net.Listen("tcp4", "127.0.0.1:0")
	return []net.Listener{s}, err
}

// ListenPacket leaves word where it listens.
func (l *loopSide) ListenPacket(uint16) ([]net.PacketConn, error) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return []net.PacketConn{c}, os.WriteFile(filepath.Join(l.dir, "dns"), []byte(c.LocalAddr().String()), 0o600)
}

func (l *loopSide) Namespace() *os.File {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	return f
}

// newNetwork makes a directory with one network whose containers are at 127.0.0.1.
func newNetwork(t *testing.T) (*Keeper, *Network) {
	t.Helper()
	// Longer than an address of a unix socket can be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	k, err := NewKeeper(dir, "loop")
	if err != nil {
		t.Fatal(err)
	}
	n := &Network{ID: randomID(), Name: "n", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Gateway: netip.MustParseAddr("127.0.0.9")}}}
	if err := os.MkdirAll(filepath.Join(k.network(n), endpointsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(k.network(n), networkFile), n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(context.Background(), n); err != nil {
			t.Error(err)
		}
	})
	return k, n
}

func start(t *testing.T, k *Keeper, n *Network) {
	t.Helper()
	if err := k.Start(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// echo serves one word per connection, and per datagram, on the same port of 127.0.0.1.
func echo(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close(), u.Close() })
	go testkit.Accept(l, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "tcp %s", b)
	})
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(append([]byte("udp "), b[:n]...), from)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// say sends a word to a published port and returns the answer.
func say(network string, to netip.AddrPort) (string, error) {
	c, err := net.DialTimeout(network, to.String(), 10*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "", err
	}
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	}
	b := make([]byte, 100)
	m, err := c.Read(b)
	return string(b[:m]), err
}

func at(p Port) netip.AddrPort {
	a := p.HostIP
	if a.IsUnspecified() && a.Is4() {
		a = netip.MustParseAddr("127.0.0.1")
	} else if a.IsUnspecified() {
		a = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(a, p.Host)
}

func endpoint(n *Network, name string, ports ...Port) *Endpoint {
	return &Endpoint{ID: randomID(), Network: n.ID, Container: name, Name: name, IPv4: netip.MustParsePrefix("127.0.0.1/8"), Gateway: true, Ports: ports}
}

func TestDenNetPublishesPorts(t *testing.T) {
	k, n := newNetwork(t)
	start(t, k, n)
	port := echo(t)
	e := endpoint(n, "c", Port{Protocol: "tcp", Container: port}, Port{Protocol: "udp", Container: port},
		Port{Protocol: "tcp", Container: port, HostIP: netip.MustParseAddr("127.0.0.2")})
	ports, err := k.Publish(t.Context(), n, e)
	if err != nil {
		t.Fatal(err)
	}
	if len(ports) < 3 {
		t.Fatalf("ports %v", ports)
	}
	for _, p := range ports {
		got, err := say(p.Protocol, at(p))
		if errors.Is(err, syscall.EADDRNOTAVAIL) && p.HostIP.Is6() {
			continue // sockets of IPv6, and no address to reach them
		}
		if err != nil || got != p.Protocol+" hello" {
			t.Errorf("%v: %q, %v", p, got, err)
		}
	}
	if again, err := k.Publish(t.Context(), n, e); err != nil || !slices.Equal(again, ports) {
		t.Errorf("published again: %v, %v", again, err)
	}
	if err := k.Withdraw(t.Context(), n, e); err != nil {
		t.Fatal(err)
	}
	if _, err := say("tcp", at(ports[0])); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a withdrawn port: %v, want refused", err)
	}
}

func TestClosedPortResetsTheClient(t *testing.T) {
	k, n := newNetwork(t)
	start(t, k, n)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ports, err := k.Publish(t.Context(), n, endpoint(n, "c", Port{Protocol: "tcp", Container: closed, HostIP: netip.MustParseAddr("127.0.0.2")}))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := say("tcp", at(ports[0])); err == nil {
		t.Errorf("a port where nobody listens answers %q", got)
	}
}

func TestRefusedPortsSayWhyAndLeaveNothing(t *testing.T) {
	k, n := newNetwork(t)
	start(t, k, n)
	l, err := net.Listen("tcp4", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).AddrPort()
	first := Port{Protocol: "tcp", Container: 80, HostIP: netip.MustParseAddr("127.0.0.4"), Host: taken.Port()}
	e := endpoint(n, "c", first, Port{Protocol: "tcp", Container: 80, HostIP: taken.Addr(), Host: taken.Port()})
	_, err = k.Publish(t.Context(), n, e)
	want := fmt.Sprintf("driver failed programming external connectivity on endpoint c (%s): failed to bind host port for %s:127.0.0.1:80/tcp: address already in use", e.ID, taken)
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if _, err := say("tcp", at(first)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the first port stayed open: %v", err)
	}
	// A range takes the next.
	e = endpoint(n, "d", Port{Protocol: "tcp", Container: 80, HostIP: taken.Addr(), Host: taken.Port(), HostEnd: taken.Port() + 9})
	if ports, err := k.Publish(t.Context(), n, e); err != nil || ports[0].Host <= taken.Port() || ports[0].Host > taken.Port()+9 {
		t.Errorf("range: %v, %v", ports, err)
	}
}

func TestKilledDenNetIsReplacedAndOpensItsPortsAgain(t *testing.T) {
	k, n := newNetwork(t)
	start(t, k, n)
	port := echo(t)
	e := endpoint(n, "c", Port{Protocol: "tcp", Container: port, HostIP: netip.MustParseAddr("127.0.0.5")})
	ports, err := k.Publish(t.Context(), n, e)
	if err != nil {
		t.Fatal(err)
	}
	e.Ports = ports
	if err := writeJSON(filepath.Join(k.network(n), endpointsDir, e.Container), e); err != nil {
		t.Fatal(err)
	}
	a, _, err := call(t.Context(), k.network(n), request{Op: opHello})
	if err != nil {
		t.Fatal(err)
	}
	start(t, k, n)
	if b, _, err := call(t.Context(), k.network(n), request{Op: opHello}); err != nil || b.PID != a.PID {
		t.Errorf("a second start: %v, %v; want the same process %d", b, err, a.PID)
	}
	if err := syscall.Kill(a.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for k.Alive(n) { // what is killed lives until it gets the processor
		time.Sleep(time.Millisecond)
	}
	start(t, k, n)
	if got, err := say("tcp", at(ports[0])); err != nil || got != "tcp hello" {
		t.Errorf("after a kill: %q, %v", got, err)
	}
	if !k.Alive(n) {
		t.Error("the new one does not count as alive")
	}
	if err := k.Stop(t.Context(), n); err != nil || k.Alive(n) {
		t.Errorf("stop: %v, alive %t", err, k.Alive(n))
	}
}

func TestDenNetAnswersNamesAndLendsItsNamespace(t *testing.T) {
	k, n := newNetwork(t)
	start(t, k, n)
	z := &Zone{Names: []Name{{Name: "db", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.7")}}}}
	if err := writeJSON(filepath.Join(k.network(n), zoneFile), z); err != nil {
		t.Fatal(err)
	}
	if err := k.Names(t.Context(), n, z); err != nil {
		t.Fatal(err)
	}
	server, err := os.ReadFile(filepath.Join(k.network(n), "dns"))
	if err != nil {
		t.Fatal(err)
	}
	q := new(dns.Msg).SetQuestion("DB.", dns.TypeA)
	m, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(q, string(server))
	if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "127.0.0.7" {
		t.Errorf("db is %v, %v", m, err)
	}
	f, err := k.Namespace(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.Stat("/proc/self/ns/net"); err != nil || !os.SameFile(got, want) {
		t.Errorf("the namespace is not this one: %v", err)
	}
}

func TestDenNetThatCannotStartSaysWhy(t *testing.T) {
	k, n := newNetwork(t)
	k.driver = "nonsense"
	if err := k.Start(t.Context(), n); err == nil || !strings.Contains(err.Error(), `no driver "nonsense"`) {
		t.Errorf("start: %v", err)
	}
}

func TestUnneededDenNetEnds(t *testing.T) {
	_, n := newNetwork(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, endpointsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	downs := 0
	p := &process{dir: dir, n: n, down: func(*Network) error { downs++; return nil }}
	lock, err := p.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	e := endpoint(n, "c")
	path := filepath.Join(dir, endpointsDir, "c")
	if err := writeJSON(path, e); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func() error
		want   bool
	}{
		{"an endpoint", func() error { return nil }, false},
		{"one that has just left", func() error { return os.Remove(path) }, false},
		{"none for long", func() error { return os.Chtimes(filepath.Dir(path), time.Time{}, time.Now().Add(-watchEvery)) }, true},
		{"no directory", func() error { return os.RemoveAll(dir) }, true},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		if got, err := p.unneeded(lock); got != c.want || err != nil {
			t.Errorf("%s: %t, %v; want %t", c.name, got, err, c.want)
		}
	}
	if downs != 1 {
		t.Errorf("the rest of the network was taken down %d times, want once", downs)
	}
}

func TestDenNetThatIsWellSaysNothing(t *testing.T) {
	// A den-net's log is where it says what happens later.
	k, n := newNetwork(t)
	start(t, k, n)
	f, err := os.Open(filepath.Join(k.network(n), processLog))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s := bufio.NewScanner(f); s.Scan() {
		t.Errorf("a den-net that is well says %q", s.Text())
	}
}
