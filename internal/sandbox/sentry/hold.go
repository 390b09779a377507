package sentry

import "sync"

// A hold is a reason why the payload's processes stand still.
type hold uint8

const (
	holdFreeze hold = 1 << iota // den wants it for a moment
	holdPause                   // the user wants it
	holdQuota                   // they have used more of the processors than they may
)

// holds are the reasons that there are now.
type holds struct {
	mu       sync.Mutex
	now      hold
	released bool // nothing is held any more
}

// hold stops the payload's processes; it returns when none runs.
func (b *box) hold(why hold) {
	b.holds.mu.Lock()
	defer b.holds.mu.Unlock()
	if b.holds.released {
		return
	}
	if b.holds.now == 0 {
		b.k.Pause()
	}
	b.holds.now |= why
}

// letGo ends what hold began, unless there is another reason.
func (b *box) letGo(why hold) {
	b.holds.mu.Lock()
	defer b.holds.mu.Unlock()
	if b.holds.now&why == 0 {
		return
	}
	if b.holds.now &^= why; b.holds.now == 0 {
		b.k.Unpause()
	}
}

// release lets everything go for good: what was killed has to run to its end.
func (b *box) release() {
	b.holds.mu.Lock()
	defer b.holds.mu.Unlock()
	b.holds.released = true
	if b.holds.now != 0 {
		b.holds.now = 0
		b.k.Unpause()
	}
}
