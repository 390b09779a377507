package sentry

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A meter counts the processor time of a process and all below it. The sentry's own
// count is of the time in which processes were ready to run, which on a busy machine is more.
type meter struct {
	root int

	mu     sync.Mutex
	last   map[int]time.Duration // by process
	listed time.Time
	total  time.Duration
}

// listEvery is how often the processes are looked for. What a new one used is not lost meanwhile.
const listEvery = 200 * time.Millisecond

// read is what they have used so far.
func (m *meter) read() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	pids := slices.Collect(maps.Keys(m.last))
	if now := time.Now(); now.Sub(m.listed) >= listEvery {
		pids, m.listed = below(m.root), now
	}
	next := make(map[int]time.Duration, len(pids))
	for _, pid := range pids {
		used, err := processTime(pid)
		if err != nil {
			continue // it has ended
		}
		before := m.last[pid]
		if used < before { // another one of that number
			before = 0
		}
		m.total += used - before
		next[pid] = used
	}
	m.last = next
	return m.total
}

// processTime is what the threads of a process have used, of its clock (clock_getcpuclockid(3)).
func processTime(pid int) (time.Duration, error) {
	const cpuclockSched = 2
	var ts unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &ts)
	return time.Duration(ts.Nano()), err
}

// below are pid and the processes below it.
func below(pid int) []int {
	all := []int{pid}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(children)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, below(n)...)
			}
		}
	}
	return all
}

// threads are those of pid and of the processes below it.
func threads(pid int) []int {
	var all []int
	for _, p := range below(pid) {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p))
		if err != nil {
			continue // it has ended
		}
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				all = append(all, tid)
			}
		}
	}
	return all
}

// throttle is a limit of processors, and what it did.
type throttle struct {
	mu            sync.Mutex
	quota, period time.Duration // 0 is no limit
	changed       chan struct{} // closed when they change
	total         time.Duration
	periods       uint64
	heldPeriods   uint64
	heldDuration  time.Duration
}

const (
	// minThrottlePeriod is the shortest time over which use is evened out: to hold and to let go takes a while.
	minThrottlePeriod = 50 * time.Millisecond
	throttleTick      = 5 * time.Millisecond
)

// set makes the limit quota in each period; 0 is none.
func (t *throttle) set(quota, period time.Duration) {
	if quota <= 0 || period <= 0 {
		quota, period = 0, 0
	} else if scale := minThrottlePeriod.Seconds() / period.Seconds(); scale > 1 {
		quota, period = time.Duration(float64(quota)*scale), minThrottlePeriod
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quota, t.period = quota, period
	if t.changed != nil {
		close(t.changed)
	}
	t.changed = make(chan struct{})
}

// run keeps the payload to the limit that there is, until it has ended.
func (t *throttle) run(s *running, cores int) {
	for {
		t.mu.Lock()
		quota, period, changed := t.quota, t.period, t.changed
		t.mu.Unlock()
		if quota > 0 {
			t.keep(s, &quotaKeeper{quota: quota, period: period, cores: cores, changed: changed})
		}
		select {
		case <-s.done:
			return
		case <-changed:
		}
	}
}

// quotaKeeper is a limit while it is in force.
type quotaKeeper struct {
	quota, period time.Duration
	cores         int
	changed       <-chan struct{}
}

// keep holds the payload while it has used more than its quota, until the limit changes or it has
// ended. What it may use comes in steadily and is kept for one period; who ran out stands still until
// there is half of that again.
func (t *throttle) keep(s *running, q *quotaKeeper) {
	rate := q.quota.Seconds() / q.period.Seconds()
	left, used, last, held := q.quota, s.meter.read(), time.Now(), false
	timer := time.NewTimer(throttleTick)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-q.changed:
			if held {
				_ = s.tell("let go", &command{LetGo: true}) // or it has ended
			}
			return
		case <-timer.C:
		}
		now, cpu := time.Now(), s.meter.read()
		elapsed := now.Sub(last)
		left = min(left+time.Duration(rate*float64(elapsed))-(cpu-used), q.quota)
		used, last = cpu, now
		t.count(elapsed, q.period, held)
		switch {
		case !held && left <= 0:
			held = true
			_ = s.tell("hold", &command{Hold: true}) // or it has ended
		case held && left >= q.quota/2:
			held = false
			_ = s.tell("let go", &command{LetGo: true})
		}
		// Sooner nothing can have changed.
		next := left / time.Duration(q.cores)
		if held {
			next = time.Duration(float64(q.quota/2-left) / rate)
		}
		timer.Reset(min(max(next, throttleTick), q.period))
	}
}

// count counts what has elapsed in periods.
func (t *throttle) count(elapsed, period time.Duration, held bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.total / period
	t.total += elapsed
	n := uint64(t.total/period - before)
	t.periods += n
	if held {
		t.heldDuration += elapsed
		t.heldPeriods = min(t.heldPeriods+max(n, 1), t.periods)
	}
}
