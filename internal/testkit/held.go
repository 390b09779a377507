// Package testkit has what tests of several packages do in the same way. Only tests import it.
package testkit

import (
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// Held is what a process has that can leak.
type Held struct{ Goroutines, Descriptors int }

// Holding counts what this process holds.
func Holding(t testing.TB) Held {
	t.Helper()
	runtime.GC() // pipes between spliced connections go with it
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return Held{runtime.NumGoroutine(), len(fds)}
}

// Settle waits until no more is held than before but for few of each, which a runtime may
// have of its own, and fails after a minute. after says what was done.
func (before Held) Settle(t testing.TB, few int, after string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		now := Holding(t)
		if now.Goroutines <= before.Goroutines+few && now.Descriptors <= before.Descriptors+few {
			return
		}
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("after %s %+v are held, before it were %+v\n%.5000s", after, now, before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// Accept runs f with each connection of l, in a goroutine of its own, and closes it then,
// until l is closed.
func Accept(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}
