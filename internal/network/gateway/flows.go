package gateway

import (
	"sync"
	"sync/atomic"
	"time"
)

// udpIdle ends a flow of datagrams; conntrack keeps streams of UDP as long.
const udpIdle = 120 * time.Second

// A flow is one conversation in datagrams, from one socket to one other.
type flow struct {
	in    *datagrams   // the container's side
	close func()       // may be called more than once
	used  atomic.Int64 // when it last moved, in nanoseconds since the epoch
	timer atomic.Pointer[time.Timer]
	ended atomic.Bool
}

func (f *flow) touch() { f.used.Store(time.Now().UnixNano()) }

// end closes the flow, also when it has ended already.
func (f *flow) end() {
	f.ended.Store(true)
	if t := f.timer.Load(); t != nil {
		t.Stop()
	}
	f.close()
}

// expire ends the flow if it was silent for idle, and looks again later if not.
func (f *flow) expire(idle time.Duration) {
	left := idle - time.Since(time.Unix(0, f.used.Load()))
	if left <= 0 {
		f.end()
		return
	}
	f.timer.Store(time.AfterFunc(left, func() { f.expire(idle) }))
	if f.ended.Load() {
		f.timer.Load().Stop()
	}
}

// flows is a bounded table of flows, which end when they are silent for idle.
type flows[K comparable] struct {
	mu    sync.Mutex
	m     map[K]*flow
	limit int
	idle  time.Duration
}

func newFlows[K comparable](limit int, idle time.Duration) *flows[K] {
	return &flows[K]{m: map[K]*flow{}, limit: limit, idle: idle}
}

func (t *flows[K]) get(k K) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[k]
}

// add puts f in. In a full table the flow that was silent longest is ended for it.
func (t *flows[K]) add(k K, f *flow) {
	f.touch()
	f.expire(t.idle)
	t.mu.Lock()
	var oldest *flow
	if len(t.m) >= t.limit {
		var key K
		for k, f := range t.m {
			if oldest == nil || f.used.Load() < oldest.used.Load() {
				key, oldest = k, f
			}
		}
		delete(t.m, key)
	}
	t.m[k] = f
	t.mu.Unlock()
	if oldest != nil {
		oldest.end()
	}
}

// remove takes f out, if it is still in.
func (t *flows[K]) remove(k K, f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[k] == f {
		delete(t.m, k)
	}
}
