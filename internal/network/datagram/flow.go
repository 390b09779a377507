// Package datagram carries datagrams between sockets that know nothing of each other: a
// conversation of two of them is a flow, which ends when it was silent for long.
//
// Rules that make it safe:
//
//   - Every table of flows is bounded; in a full one who has most flows gives one up.
//   - A silent flow holds no buffer.
//   - An answer comes from the address that the client wrote to.
package datagram

import (
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxFlows bounds a table of flows.
	MaxFlows = 2048
	// Idle ends a flow; conntrack keeps streams of UDP as long.
	Idle = 120 * time.Second
)

// A Flow is one conversation, of In with whom its owner talks to.
type Flow struct {
	// Owner is whose it is, where a table is full.
	Owner netip.Addr
	// In and, if not nil, Out are closed with the flow, perhaps more than once.
	In  Socket
	Out io.Closer

	used  atomic.Int64 // when it last moved, in nanoseconds since the epoch
	timer atomic.Pointer[time.Timer]
	ended atomic.Bool
}

// Touch notes that the flow moves.
func (f *Flow) Touch() { f.used.Store(time.Now().UnixNano()) }

// End closes the flow, also when it has ended already.
func (f *Flow) End() {
	f.ended.Store(true)
	if t := f.timer.Load(); t != nil {
		t.Stop()
	}
	_ = f.In.Close()
	if f.Out != nil {
		_ = f.Out.Close()
	}
}

// expire ends the flow if it was silent for idle, and looks again later if not.
func (f *Flow) expire(idle time.Duration) {
	left := idle - time.Since(time.Unix(0, f.used.Load()))
	if left <= 0 {
		f.End()
		return
	}
	f.timer.Store(time.AfterFunc(left, func() { f.expire(idle) }))
	if f.ended.Load() {
		f.timer.Load().Stop()
	}
}

// Flows is a bounded table of flows, which end when they are silent for long.
type Flows[K comparable] struct {
	limit int
	idle  time.Duration

	mu    sync.Mutex
	m     map[K]*Flow // nil once closed
	owned map[netip.Addr]int
}

// NewFlows returns a table of limit flows, which end when they were silent for idle.
func NewFlows[K comparable](limit int, idle time.Duration) *Flows[K] {
	return &Flows[K]{limit: limit, idle: idle, m: map[K]*Flow{}, owned: map[netip.Addr]int{}}
}

// Flow is the one that goes by k, or nil.
func (t *Flows[K]) Flow(k K) *Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[k]
}

// Add puts f in, where no other goes by k. In a full table the owner with most flows loses the
// one that was silent longest. After Close it ends f and returns false.
func (t *Flows[K]) Add(k K, f *Flow) bool {
	f.Touch()
	f.expire(t.idle)
	t.mu.Lock()
	open := t.m != nil
	var spare *Flow
	if open {
		if len(t.m) >= t.limit {
			spare = t.spare()
		}
		t.m[k] = f
		t.owned[f.Owner]++
	}
	t.mu.Unlock()
	if spare != nil {
		spare.End()
	}
	if !open {
		f.End()
	}
	return open
}

// spare takes out the flow that makes room.
func (t *Flows[K]) spare() *Flow {
	var key K
	var found *Flow
	for k, f := range t.m {
		if found == nil || t.before(f, found) {
			key, found = k, f
		}
	}
	t.forget(key, found)
	return found
}

// before reports whether f makes room before g does.
func (t *Flows[K]) before(f, g *Flow) bool {
	if m, n := t.owned[f.Owner], t.owned[g.Owner]; m != n {
		return m > n
	}
	return f.used.Load() < g.used.Load()
}

func (t *Flows[K]) forget(k K, f *Flow) {
	delete(t.m, k)
	if t.owned[f.Owner]--; t.owned[f.Owner] == 0 {
		delete(t.owned, f.Owner)
	}
}

// Remove takes f out, if it is still in.
func (t *Flows[K]) Remove(k K, f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[k] == f {
		t.forget(k, f)
	}
}

// Close ends all flows.
func (t *Flows[K]) Close() {
	t.mu.Lock()
	m := t.m
	t.m = nil
	t.mu.Unlock()
	for _, f := range m {
		f.End()
	}
}
