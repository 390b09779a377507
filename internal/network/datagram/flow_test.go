package datagram

import (
	"net/netip"
	"testing"
	"time"
)

// closed is a Socket without another end.
type closed struct{ f func() }

func (closed) Send([]byte) error             { return nil }
func (closed) Each(func([]byte) error) error { return nil }

func (c closed) Close() error {
	if c.f != nil {
		c.f()
	}
	return nil
}

var a, b = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")

func TestFullTableEndsTheOldestFlow(t *testing.T) {
	table := NewFlows[int](2, time.Hour)
	var ended []int
	add := func(k int) *Flow {
		f := &Flow{Owner: a, In: closed{func() { ended = append(ended, k) }}}
		table.Add(k, f)
		return f
	}
	first, second := add(1), add(2)
	second.used.Store(1)
	first.Touch()
	add(3)
	if len(ended) != 1 || ended[0] != 2 || table.Flow(2) != nil || table.Flow(1) != first {
		t.Errorf("ended %v", ended)
	}
}

// Who opens flows without end closes its own.
func TestFullTableEndsFlowsOfWhoHasMost(t *testing.T) {
	table := NewFlows[int](10, time.Hour)
	ended := map[netip.Addr]int{}
	add := func(k int, owner netip.Addr) {
		table.Add(k, &Flow{Owner: owner, In: closed{func() { ended[owner]++ }}})
	}
	for k := range 3 {
		add(k, a) // the oldest
	}
	for k := range 100 {
		add(10+k, b)
	}
	if ended[a] != 0 || ended[b] != 93 {
		t.Errorf("ended: %v, want 93 of the one with many", ended)
	}
	for k := range 110 {
		if f := table.Flow(k); f != nil {
			table.Remove(k, f)
		}
	}
	if len(table.m) != 0 || len(table.owned) != 0 {
		t.Errorf("left: %v, %v", table.m, table.owned)
	}
}

func TestSilentFlowEnds(t *testing.T) {
	table := NewFlows[int](2, time.Millisecond)
	done := make(chan struct{})
	table.Add(1, &Flow{In: closed{func() { close(done) }}})
	<-done
}
