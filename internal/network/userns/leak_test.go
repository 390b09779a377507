package userns

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"den/internal/testkit"
)

// Connections that the kernel carries have descriptors that pass between threads and namespaces.
func TestNothingIsLeftOfThousandsOfConnections(t *testing.T) {
	if !enter(t) {
		return
	}
	s, c := oneNetwork(t, "172.30.0.0/24")
	serveClients(t, c.ns, ":80")
	before := testkit.Holding(t)
	open, shut := netip.AddrPortFrom(c.e.IPv4.Addr(), 80), netip.AddrPortFrom(c.e.IPv4.Addr(), 81)
	var addresses []string
	var ports []io.Closer
	for _, to := range []netip.AddrPort{open, open, shut} {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		must(t, err)
		p, err := s.Publish(l, to)
		must(t, err)
		addresses, ports = append(addresses, l.Addr().String()), append(ports, p)
	}
	slots := make(chan struct{}, 16)
	var work sync.WaitGroup
	for i := range 2000 {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			c, err := net.Dial("tcp", addresses[i%len(addresses)])
			if err != nil {
				return // of the closed one
			}
			defer c.Close()
			_, _ = c.Write([]byte("hello"))
			if i%4 == 0 {
				_ = c.(*net.TCPConn).SetLinger(0)
				return
			}
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if b, err := io.ReadAll(c); i%len(addresses) < 2 && (err != nil || len(b) == 0) {
				t.Errorf("%d bytes came, %v", len(b), err)
			}
		})
	}
	work.Wait()
	for _, p := range ports {
		must(t, p.Close())
	}
	if len(s.direct.taken) > 0 {
		t.Errorf("left: %v", s.direct.taken)
	}
	const few = 5
	before.Settle(t, few, "connections by the kernel")
}
