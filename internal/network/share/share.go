// Package share lends a bounded number of things, such as connections, to takers of which
// none must keep the others from having any.
//
// A taker gets one more as long as it has fewer than are free. So one alone has half of all at
// most, two that want all have a third each, and who has none finds some whatever the others do.
package share

import "sync"

// Slots are the things that are lent; a taker is a K, such as a container's address.
type Slots[K comparable] struct {
	mu    sync.Mutex
	free  int
	taken map[K]int
}

// New returns n slots, all free.
func New[K comparable](n int) *Slots[K] { return &Slots[K]{free: n, taken: map[K]int{}} }

// Take takes a slot for k, or reports that there is none for it. It waits for nobody.
func (s *Slots[K]) Take(k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[k] >= s.free {
		return false
	}
	s.free--
	s.taken[k]++
	return true
}

// Give gives back a slot that k took.
func (s *Slots[K]) Give(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.taken[k]--; s.taken[k] == 0 {
		delete(s.taken, k)
	}
}
