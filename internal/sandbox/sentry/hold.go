package sentry

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/sentry/kernel"
)

// A hold is a reason why a payload's processes stand still.
type hold uint8

const (
	holdFreeze hold = 1 << iota // den wants it for a moment
	holdPause                   // the user wants it
)

// holds are the reasons that there are now.
type holds struct {
	mu       sync.Mutex
	now      hold
	still    map[*kernel.Task]bool // who was stopped
	released bool                  // nothing is held any more
}

// hold stops the processes of the box; it returns when none runs.
func (b *box) hold(why hold) {
	b.holds.mu.Lock()
	defer b.holds.mu.Unlock()
	if b.holds.released {
		return
	}
	if b.holds.now == 0 {
		b.stop()
	}
	b.holds.now |= why
}

// stop stops all there are, and those that they have made until they stood still.
func (b *box) stop() {
	still := map[*kernel.Task]bool{}
	b.holds.still = still
	for more := true; more; {
		more = false
		for _, t := range b.tasks() {
			if !still[t] {
				t.BeginExternalStop()
				still[t], more = true, true
			}
		}
		for t := range still {
			awaitStill(t)
		}
	}
}

// awaitStill returns when a task that was told to stop does nothing any more. The kernel tells that
// of all tasks only; it takes microseconds, or as long as what the task waits for outside.
func awaitStill(t *kernel.Task) {
	for wait := 10 * time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		switch t.TaskGoroutineState() {
		case kernel.TaskGoroutineStopped, kernel.TaskGoroutineNonexistent: // one that has not begun stops first
			return
		default:
			time.Sleep(wait)
		}
	}
}

// letGo ends what hold began, unless there is another reason.
func (b *box) letGo(why hold) {
	b.holds.mu.Lock()
	defer b.holds.mu.Unlock()
	if b.holds.now&why == 0 {
		return
	}
	if b.holds.now &^= why; b.holds.now == 0 {
		b.holds.resume()
	}
}

// resume lets go who was stopped. h is locked.
func (h *holds) resume() {
	for t := range h.still {
		t.EndExternalStop()
	}
	h.still = nil
}

// release lets everything go for good: what was killed has to run to its end.
func (b *box) release() {
	b.holds.mu.Lock()
	b.holds.released, b.holds.now = true, 0
	b.holds.resume()
	b.holds.mu.Unlock()
	if b == b.first {
		b.quota.end(b.k)
	}
}

// A quotaHold has all processes of a machine stand still while they have used more of the processors
// than they may.
type quotaHold struct {
	mu   sync.Mutex
	held bool
	over bool // nobody is held any more
}

func (q *quotaHold) hold(k *kernel.Kernel) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.over && !q.held {
		k.Pause()
		q.held = true
	}
}

func (q *quotaHold) letGo(k *kernel.Kernel) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held {
		k.Unpause()
		q.held = false
	}
}

// end lets go for good.
func (q *quotaHold) end(k *kernel.Kernel) {
	q.mu.Lock()
	q.over = true
	q.mu.Unlock()
	q.letGo(k)
}
