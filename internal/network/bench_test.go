package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"den/internal/testkit"
)

// Benchmarks of the bridge run in a network namespace made for them:
//
//	DEN_TEST_OWN_NETWORK=1 unshare -n go test -run ^$ -bench . ./internal/network

func benchmarkNetworks(b *testing.B) *Networks {
	b.Helper()
	if os.Getenv(ownNetworkEnv) == "" {
		b.Skip("needs a network namespace of its own: " + ownNetworkEnv + "=1 unshare -n")
	}
	dir := filepath.Join(b.TempDir(), "networks")
	d, err := NewBridge(dir)
	if err != nil {
		b.Fatal(err)
	}
	ns, err := Open(dir, d, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := ns.Reconcile(context.Background(), func(string) bool { return false }); err != nil {
			b.Error(err)
		}
	})
	if _, err := ns.Create(b.Context(), CreateRequest{Name: "n"}); err != nil {
		b.Fatal(err)
	}
	return ns
}

func attachOne(b *testing.B, ns *Networks, container string, ports ...Port) (Space, Endpoint) {
	b.Helper()
	s, es, err := ns.Attach(b.Context(), container, []EndpointRequest{{Network: "n", Name: container, Ports: ports}})
	if err != nil {
		b.Fatal(err)
	}
	return s, es[0]
}

// What a network costs the start and the end of a container.
func BenchmarkAttachAndRelease(b *testing.B) {
	for _, c := range []struct {
		name  string
		ports []Port
		first bool
	}{
		{"first", nil, true}, {"more", nil, false}, {"with a port", []Port{{Protocol: "tcp", Container: 80}}, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			ns := benchmarkNetworks(b)
			if !c.first {
				s, _ := attachOne(b, ns, "other")
				defer s.Close()
			}
			for b.Loop() {
				s, _ := attachOne(b, ns, "c", c.ports...)
				if err := ns.Release(b.Context(), "c"); err != nil {
					b.Fatal(err)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// One stream of 64 KiB writes, to a container from another, and by a published port.
func BenchmarkStream(b *testing.B) {
	ns := benchmarkNetworks(b)
	s, e := attachOne(b, ns, "server", Port{Protocol: "tcp", Container: 80, HostIP: netip.MustParseAddr("127.0.0.1")})
	defer s.Close()
	client, _ := attachOne(b, ns, "client")
	defer client.Close()
	var l net.Listener
	if err := In(s.Namespace(), func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	}); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go testkit.Accept(l, func(c net.Conn) {
		_, _ = io.Copy(io.Discard, c)
		_, _ = c.Write([]byte{1})
	})
	for _, c := range []struct {
		name string
		from *os.File
		to   netip.AddrPort
	}{
		{"between containers", client.Namespace(), netip.AddrPortFrom(e.IPv4.Addr(), 80)},
		{"published, from here", nil, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.Ports[0].Host)},
	} {
		b.Run(c.name, func(b *testing.B) {
			var conn net.Conn
			if err := In(c.from, func() (err error) {
				conn, err = net.Dial("tcp", c.to.String())
				return err
			}); err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			block := make([]byte, 64<<10)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := conn.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // all has arrived
				b.Fatal(err)
			}
		})
		b.Run(c.name+", connections", func(b *testing.B) {
			for b.Loop() {
				var conn net.Conn
				if err := In(c.from, func() (err error) {
					conn, err = net.Dial("tcp", c.to.String())
					return err
				}); err != nil {
					b.Fatal(err)
				}
				if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
				_ = conn.Close()
			}
		})
	}
}
