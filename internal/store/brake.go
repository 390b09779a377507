package store

import (
	"encoding/json"
	"io"
	"os"
	"runtime"
	"sync"
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
	mu    sync.Mutex // never held while something waits for a disk
	pedal Brake
	held  time.Time // since when it is held; zero if it goes on
	again time.Time // when it may be held again
	limit int64     // it is held when so much of the disk is used
}

func (b *brake) can() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pedal != nil
}

// since is for how long the program is held by now; zero if it goes on.
func (b *brake) since() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held.IsZero() {
		return 0
	}
	return max(time.Since(b.held), 1)
}

// hold holds the program. It reports whether it went on before.
func (b *brake) hold() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.holdLocked()
}

func (b *brake) holdLocked() bool {
	if b.pedal == nil || !b.held.IsZero() {
		return false
	}
	b.held = time.Now()
	b.pedal.Freeze()
	return true
}

func (b *brake) letGo() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held.IsZero() {
		b.held = time.Time{}
		b.pedal.Thaw()
	}
}

// rest lets the program go on and keeps from holding it for d, unless by the limit.
func (b *brake) rest(d time.Duration) {
	b.letGo()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.again = time.Now().Add(d)
}

func (b *brake) resting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Before(b.again)
}

// release lets the program go on for good.
func (b *brake) release() {
	b.letGo()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pedal = nil
}

// aim sets how much of the disk may be used before the program is held.
func (b *brake) aim(usedBytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = usedBytes
}

// meet holds the program if the limit is reached. It returns what is left to it, and whether
// the program went on before.
func (b *brake) meet(usedBytes int64) (left int64, held bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if left = b.limit - usedBytes; left <= 0 {
		held = b.holdLocked()
	}
	return left, held
}

// SetBrake lets w hold the program while it makes room for what it writes next, so
// that a fast one does not write more than is reserved meanwhile. A soft budget holds nobody.
func (w *Watch) SetBrake(b Brake) {
	if w.ahead == nil || w.store.budget.soft {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.brake.mu.Lock()
	w.brake.pedal = b
	w.brake.mu.Unlock()
	w.aim()
	w.guarding.Do(func() { w.wg.Go(w.guard) })
}

// guard holds the program when nearly all that is reserved may be eaten, whatever the watch
// does at the time: to count and to reserve is to wait for a disk that the program keeps busy,
// for seconds at times. The guard asks the kernel's counters only.
func (w *Watch) guard() {
	// The thread's slice is its own, and ends with it.
	runtime.LockOSThread()
	sys.HurryThread()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-w.ctx.Done():
			return
		case <-t.C:
		}
		pause := watchEvery
		if d, err := sys.DiskOf(w.store.root); err == nil {
			left, held := w.brake.meet(d.UsedBytes)
			if held {
				select {
				case w.alarm <- struct{}{}:
				default: // the watch has not heard the last one yet
				}
			}
			pause = min(max(time.Duration(float64(left)/burstBytes*float64(time.Second)), watchFast), watchEvery)
		}
		t.Reset(pause)
	}
}

// aim tells the guard what may be eaten.
func (w *Watch) aim() {
	lack, _ := w.ahead.lack(w.room())
	left := w.room() - lack
	// Without more to come, what there is may be eaten up.
	reserve := int64(-1)
	if w.growing || lack <= 0 {
		reserve = w.room() / 8
	}
	limit := w.fsUsed - w.grown + left - reserve
	if !w.near.asked.IsZero() { // far from its limit nothing is worth a stop
		limit = max(limit, w.near.fsUsed+w.near.bytes-nearBytes)
	}
	w.brake.aim(limit)
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
	case b.since() > maxHeld:
		b.rest(maxHeld)
	case half > 0 && !b.resting():
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
