package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"den/internal/network/datagram"
	"den/internal/testkit"
)

// few are what a runtime may have of its own.
const few = 5

// many runs f so often, some at a time.
func many(n int, f func(i int)) {
	const atOnce = 32
	slots := make(chan struct{}, atOnce)
	var work sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	work.Wait()
}

// However connections end, nothing of thousands is left.
func TestNothingIsLeftOfThousandsOfConnections(t *testing.T) {
	g, in := lab(t, 1500)
	l := outer(t, "127.0.0.1:0")
	var accepted atomic.Int32
	go testkit.Accept(l, func(c net.Conn) {
		if accepted.Add(1)%5 == 0 { // broken off outside
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		_, _ = io.Copy(c, c)
	})
	closed := outer(t, "127.0.0.1:0")
	refusing := port(closed.Addr())
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := testkit.Holding(t)
	var opened atomic.Int32
	many(2000, func(i int) {
		to := port(l.Addr())
		if i%4 == 0 {
			to = refusing
		}
		c, err := in.Dial(ctx, "tcp", at(gateway4, to))
		if err != nil { // also what was broken off before the gateway looked
			return
		}
		opened.Add(1)
		defer c.Close()
		_, _ = c.Write([]byte("hello"))
		if i%3 == 0 {
			return // in the middle
		}
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		_, _ = io.ReadAll(c)
	})
	if opened.Load() < 1000 {
		t.Errorf("%d connections were opened", opened.Load())
	}
	before.Settle(t, few, "connections outward")

	inside, err := in.Listen(netip.AddrPortFrom(guest4.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	go testkit.Accept(inside, func(c net.Conn) { _, _ = io.Copy(c, c) })
	before = testkit.Holding(t)
	published := outer(t, "127.0.0.1:0")
	to := published.Addr().String()
	p, err := g.Publish(published, netip.AddrPortFrom(guest4.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	many(1000, func(i int) {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte("hello"))
		if i%3 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	before.Settle(t, few, "connections inward")
}

// Flows of datagrams last for minutes; the table bounds them, and Close ends them.
func TestNothingIsLeftOfThousandsOfFlows(t *testing.T) {
	g, in := lab(t, 1500)
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	before := testkit.Holding(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	many(3000, func(int) {
		c, err := in.Dial(ctx, "udp", at(gateway4, u.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = c.Write([]byte("x"))
		_ = c.Close()
	})
	const each = 3 // goroutines of a flow
	if now := testkit.Holding(t); now.Goroutines > before.Goroutines+each*datagram.MaxFlows+200 || now.Descriptors > before.Descriptors+datagram.MaxFlows+200 {
		t.Errorf("%+v are held for %d flows", now, datagram.MaxFlows)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	before.Settle(t, few, "flows")
}
