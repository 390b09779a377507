package sentry

import (
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A busyLink is one that has just read what the stack answers by a route.
type busyLink struct {
	stack.LinkEndpoint
	stack  *stack.Stack
	reader sync.WaitGroup
}

func (l *busyLink) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.LinkEndpoint.Attach(d)
		l.reader.Add(1)
		return
	}
	go func() {
		defer l.reader.Done()
		if r, err := l.stack.FindRoute(1, tcpip.Address{}, tcpip.AddrFrom4([4]byte{10, 88, 0, 1}), ipv4.ProtocolNumber, false); err == nil {
			r.Release()
		}
	}()
	l.reader.Wait()
}

func (l *busyLink) Wait() { l.reader.Wait() }

// A device that answers just then is taken away all the same, by den or by the payload.
func TestBusyDeviceIsTakenAway(t *testing.T) {
	s := stack.New(stack.Options{NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol}})
	link := &busyLink{LinkEndpoint: channel.New(1, 1500, "\x02\x42\x0a\x58\x00\x01"), stack: s}
	if err := addDevice(s, 1, "eth0", socketLink{link}, nil); err != nil {
		t.Fatal(err)
	}
	gone := make(chan tcpip.Error, 1)
	go func() {
		err := s.RemoveNIC(1)
		socketLink{link}.Wait()
		gone <- err
	}()
	select {
	case err := <-gone:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the stack waits for the reader of its device, and that for the stack")
	}
}
