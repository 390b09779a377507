package store

import (
	"encoding/json"
	"io"
	"os"
	"time"

	"den/internal/sys"
)

// A Brake holds the program that is watched for a moment.
type Brake interface {
	Freeze()
	Thaw()
}

// maxHeld bounds how long a program is held that has not eaten nearly all that is reserved:
// what it waits for may be another that is held as well.
const maxHeld = 2 * time.Second

// brake is what a watch knows about the program's. Its zero value cannot hold.
type brake struct {
	pedal Brake
	held  time.Time // since when it is held; zero if it goes on
	again time.Time // when it may be held again
}

func (b *brake) can() bool { return b.pedal != nil }

func (b *brake) hold() {
	if b.pedal != nil && b.held.IsZero() {
		b.held = time.Now()
		b.pedal.Freeze()
	}
}

func (b *brake) letGo() {
	if !b.held.IsZero() {
		b.held = time.Time{}
		b.pedal.Thaw()
	}
}

// release lets the program go on for good.
func (b *brake) release() {
	b.letGo()
	b.pedal = nil
}

// SetBrake lets w hold the program while it makes room for what it writes next, so
// that a fast one does not write more than is reserved meanwhile.
func (w *Watch) SetBrake(b Brake) {
	if w.ahead == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.brake.pedal = b
	}
}

// press holds the program if it may eat what is left before there is more, and lets it go
// after a while if that is not nearly all. A piece that cannot be had comes to its end:
// whoever waits for others has patience.
func (w *Watch) press() {
	if !w.growing {
		return
	}
	half, _ := w.ahead.lack(w.grown + w.room()/2)
	last, _ := w.ahead.lack(w.grown + w.room()/8)
	b := &w.brake
	switch {
	case last > 0:
		b.hold()
	case !b.held.IsZero() && time.Since(b.held) > maxHeld:
		b.again = time.Now().Add(maxHeld)
		b.letGo()
	case half > 0 && time.Now().After(b.again):
		b.hold()
	}
}

// nearness is how much more a store may take before its budget binds, asked now and then.
type nearness struct {
	asked  time.Time
	fsUsed int64
	bytes  int64
}

// to is an estimate for s, on a disk that is d by now.
func (n *nearness) to(s *Store, d sys.Disk) int64 {
	if now := time.Now(); now.Sub(n.asked) >= watchEvery {
		*n = nearness{asked: now, fsUsed: d.UsedBytes, bytes: s.slack(d)}
	}
	return n.bytes - max(d.UsedBytes-n.fsUsed, 0)
}

// slack is what the ledger leaves, which is read without its lock: nobody is admitted by it.
func (s *Store) slack(d sys.Disk) int64 {
	const much = 1 << 60
	left := int64(much)
	if s.budget.minFreeBytes > 0 {
		left = d.FreeBytes - s.budget.minFreeBytes
	}
	if s.budget.maxBytes == 0 {
		return left
	}
	f, err := os.Open(s.path("lock", ledgerFile))
	if err != nil {
		return 0
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	var l ledger
	if err != nil || json.Unmarshal(data, &l) != nil || l.Round == 0 {
		return 0
	}
	return min(left, s.budget.maxBytes-l.boundBytes(d.UsedBytes))
}
