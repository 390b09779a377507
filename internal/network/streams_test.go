package network

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

	"den/internal/testkit"
)

// However thousands of connections through a published port end, nothing of them is left.
func TestNothingIsLeftOfThousandsOfStreams(t *testing.T) {
	container, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer container.Close()
	var accepted atomic.Int32
	go testkit.Accept(container, func(c net.Conn) {
		if accepted.Add(1)%5 == 0 { // broken off by the container
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		_, _ = io.Copy(c, c)
	})
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	before := testkit.Holding(t)
	var mu sync.Mutex
	dialled := 0
	port := NewStreams().Publish(l, netip.Addr{}, func(ctx context.Context, _ netip.Addr) (Stream, error) {
		mu.Lock()
		dialled++
		refused := dialled%7 == 0
		mu.Unlock()
		if refused {
			return nil, syscall.ECONNREFUSED
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", container.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	})
	slots := make(chan struct{}, 32)
	var work sync.WaitGroup
	for i := range 3000 {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			if err := useStream(l.Addr().String(), i); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	const few = 5 // of the runtime's own, and the pipes of a pool
	before.Settle(t, few, "connections")
}

// useStream opens a connection and ends it in one of three ways.
func useStream(address string, i int) error {
	c, err := net.Dial("tcp", address)
	if errors.Is(err, syscall.ECONNRESET) { // broken off before it was looked at
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = c.Write([]byte("hello"))
	if i%3 == 0 {
		return c.(*net.TCPConn).SetLinger(0)
	}
	if i%3 == 1 {
		return nil
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	return nil
}
