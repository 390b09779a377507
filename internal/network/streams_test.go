package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// However thousands of connections through a published port end, nothing of them is left.
func TestNothingIsLeftOfThousandsOfStreams(t *testing.T) {
	container, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer container.Close()
	go func() {
		for i := 0; ; i++ {
			c, err := container.Accept()
			if err != nil {
				return
			}
			if i%5 == 0 { // broken off by the container
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
				continue
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	goroutines, descriptors := holding(t)
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
	var g, d int
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if g, d = holding(t); g <= goroutines+few && d <= descriptors+few {
			return
		}
	}
	t.Errorf("%d goroutines and %d descriptors are held, before it were %d and %d", g, d, goroutines, descriptors)
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

// holding is what this process has that can leak.
func holding(t *testing.T) (goroutines, descriptors int) {
	t.Helper()
	runtime.GC() // pipes between spliced connections go with it
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return runtime.NumGoroutine(), len(fds)
}
