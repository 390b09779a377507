package vswitch

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"den/internal/network"
	"den/internal/testkit"
)

// BenchmarkStreams compares a stream between two containers, to the outer loopback
// device and by a published port with one on the loopback device itself: MB/s of each,
// and round trips of one byte.
func BenchmarkStreams(b *testing.B) {
	ns := open(b)
	n := create(b, ns, network.CreateRequest{Name: "app"})
	ports := []network.Port{{Protocol: "tcp", Container: 9, HostIP: netip.MustParseAddr("127.0.0.1")}}
	one := run(b, ns, "c1", network.EndpointRequest{Network: "app", Ports: ports})
	two := run(b, ns, "c2", network.EndpointRequest{Network: "app"})
	inside, err := one.Listen(netip.AddrPortFrom(one.e.IPv4.Addr(), 9))
	if err != nil {
		b.Fatal(err)
	}
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	for _, l := range []net.Listener{inside, outside} {
		b.Cleanup(func() { l.Close() })
		go acknowledge(l)
	}
	port := uint16(outside.Addr().(*net.TCPAddr).Port)
	var d net.Dialer
	for _, x := range []struct {
		name string
		dial func() (net.Conn, error)
	}{
		{"loopback", func() (net.Conn, error) { return d.DialContext(b.Context(), "tcp", outside.Addr().String()) }},
		{"between", func() (net.Conn, error) {
			return two.Dial(b.Context(), "tcp", netip.AddrPortFrom(one.e.IPv4.Addr(), 9).String())
		}},
		{"outward", func() (net.Conn, error) {
			return two.Dial(b.Context(), "tcp", netip.AddrPortFrom(n.Gateways()[0], port).String())
		}},
		{"published", func() (net.Conn, error) {
			return d.DialContext(b.Context(), "tcp", netip.AddrPortFrom(one.e.Ports[0].HostIP, one.e.Ports[0].Host).String())
		}},
	} {
		b.Run(x.name, func(b *testing.B) {
			c, err := x.dial()
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			block, answer := make([]byte, blockBytes), make([]byte, 1)
			var trips int
			var tripping time.Duration
			b.SetBytes(blockBytes)
			for b.Loop() {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
				begin := time.Now()
				if _, err := io.ReadFull(c, answer); err != nil {
					b.Fatal(err)
				}
				tripping += time.Since(begin)
				trips++
			}
			b.ReportMetric(float64(tripping.Microseconds())/float64(trips), "µs/answer")
		})
	}
}

const blockBytes = 1 << 20

// acknowledge answers a byte to each block.
func acknowledge(l net.Listener) {
	testkit.Accept(l, func(c net.Conn) {
		b := make([]byte, blockBytes)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if _, err := c.Write(b[:1]); err != nil {
				return
			}
		}
	})
}
