package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"den/internal/network/datagram"
)

// A holding is what a process has that can leak.
type holding struct{ goroutines, descriptors int }

func held(t *testing.T) holding {
	t.Helper()
	runtime.GC() // pipes between spliced connections go with it
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return holding{runtime.NumGoroutine(), len(fds)}
}

// givenBack waits until no more is held than before, but for a few that the runtime has.
func givenBack(t *testing.T, before holding) {
	t.Helper()
	const few = 5
	var now holding
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now = held(t); now.goroutines <= before.goroutines+few && now.descriptors <= before.descriptors+few {
			return
		}
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%+v are held, before it were %+v\n%.5000s", now, before, stacks[:runtime.Stack(stacks, true)])
}

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
	go func() {
		for i := 0; ; i++ {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			if i%5 == 0 { // broken off outside
				_ = c.SetLinger(0)
				_ = c.Close()
				continue
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	closed := outer(t, "127.0.0.1:0")
	refusing := port(closed.Addr())
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := held(t)
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
	givenBack(t, before)

	inside, err := in.Listen(netip.AddrPortFrom(guest4.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := inside.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	before = held(t)
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
	givenBack(t, before)
}

// Flows of datagrams last for minutes; the table bounds them, and Close ends them.
func TestNothingIsLeftOfThousandsOfFlows(t *testing.T) {
	g, in := lab(t, 1500)
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	before := held(t)
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
	if now := held(t); now.goroutines > before.goroutines+each*datagram.MaxFlows+200 || now.descriptors > before.descriptors+datagram.MaxFlows+200 {
		t.Errorf("%+v are held for %d flows", now, datagram.MaxFlows)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	givenBack(t, before)
}
