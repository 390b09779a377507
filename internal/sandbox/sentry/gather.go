package sentry

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A system call of a payload is work for two threads, one of which waits while the other runs: to wake a thread on
// an idle processor takes a virtual machine ten times what it takes on the same one, and to wait in a loop takes the
// processor from whoever shares it. So on a machine of few processors den keeps a sentry and its processes
// on one while they would not use another, and no thread of the platform waits in a loop.

// mostGathered is the largest number of processors at which this is done: more are not measured.
const mostGathered = 2

// timerSlack is how much later than asked a sentry's timers may go off (PR_SET_TIMERSLACK of prctl(2), 50 µs by default): a
// thread of the Go runtime that looks for work sleeps for 3 µs before it takes what another one is about to run, and
// each timer of its own is two writes to a register of the processor and an interrupt. A short sleep of a payload
// took more than 1 ms anyway, that of epoll_wait(2), and takes up to 2.
const timerSlack = time.Millisecond

// gathers says whether sentries are to be gathered, in den and in a sentry alike.
func gathers() bool { return runtime.NumCPU() <= mostGathered }

// How long it is to the next look: at a sentry that was just spread to see whether it uses more, at one that is
// spread, at one that is gathered, and at most at one that does nothing, which is looked at twice and twice as late.
const (
	spreadTick   = 10 * time.Millisecond
	gatherTick   = 30 * time.Millisecond
	gatheredTick = 120 * time.Millisecond
	idleTick     = time.Second
)

const (
	// A try to spread that found nothing is made again after leastPause, and then twice and twice as late.
	leastPause, mostPause = 125 * time.Millisecond, 4 * time.Second
	// leastAlone is how long a sentry that others disturbed is left to the kernel, and then twice and twice as long.
	leastAlone, mostAlone = 250 * time.Millisecond, 16 * time.Second
)

// In processors, of what all threads together ran or waited for one.
const (
	ranIdle    = 0.3  // less is nothing to be decided by
	ranMore    = 1.25 // more is use of a second processor
	ranOurs    = 0.7  // less while they wait is because of others
	waitedMuch = 0.5
)

// gathering decides where the threads of a sentry and of its processes may run.
type gathering struct {
	on     bool // on one processor
	useful bool // spread, and more than one was used since
	low    int  // looks one after the other that spoke for a change
	pause  time.Duration
	alone  time.Duration
	next   time.Time // before it, what was tried last is not tried again
}

// look says whether they should be on one processor, after a time in which they ran and waited so much.
func (g *gathering) look(now time.Time, ran, waited float64) bool {
	switch {
	case g.on && ran < ranOurs && waited > waitedMuch:
		if g.low++; g.low < 2 {
			break
		}
		g.on, g.useful, g.low = false, false, 0 // the kernel has to find another place
		g.alone = min(max(2*g.alone, leastAlone), mostAlone)
		g.next = now.Add(g.alone)
	case g.on && waited > waitedMuch && !now.Before(g.next): // would they run?
		g.on, g.useful, g.low = false, false, 0
	case g.on:
		g.low = 0
	case ran < ranIdle:
	case ran >= ranMore:
		g.useful, g.low = true, 0
	case !now.Before(g.next):
		if g.low++; g.useful && g.low < 3 {
			break
		}
		g.pause = min(2*g.pause, mostPause)
		if g.useful || g.pause == 0 {
			g.pause = leastPause
		}
		g.on, g.low, g.next = true, 0, now.Add(g.pause)
	}
	return g.on
}

// gather keeps a sentry, and its processes, on one processor of every or on all, as look decides by what their threads
// ran and waited since the last time (both in processors), until end is closed or the sentry has ended.
func gather(pid int, every *unix.CPUSet, look func(now time.Time, ran, waited float64) bool, end <-chan struct{}) {
	timer := time.NewTimer(gatherTick)
	defer timer.Stop()
	on, next := false, gatherTick
	before, at := threadTimes(pid), time.Now()
	for len(before) > 0 {
		select {
		case <-end:
			return
		case <-timer.C:
		}
		times, now := threadTimes(pid), time.Now()
		var ran, waited, most time.Duration
		busiest := pid
		for tid, t := range times {
			b := before[tid]
			if t.ran < b.ran { // another one of that number
				b = threadTime{}
			}
			if t.ran-b.ran > most {
				most, busiest = t.ran-b.ran, tid
			}
			ran, waited = ran+t.ran-b.ran, waited+t.waited-b.waited
		}
		took := now.Sub(at).Seconds()
		is := look(now, ran.Seconds()/took, waited.Seconds()/took)
		spread := on && !is
		if is != on {
			on = is
			set := every
			if on {
				set = processorOf(busiest, every)
			}
			if err := keepTo(pid, set); err != nil {
				_ = keepTo(pid, every) // or it has ended
				return
			}
		}
		before, at = times, now
		switch {
		case ran.Seconds()/took < ranIdle/10:
			next = min(2*next, idleTick)
		case on:
			next = gatheredTick
		case spread:
			next = spreadTick
		default:
			next = gatherTick
		}
		timer.Reset(next)
	}
}

// threadTime is what a thread has run, and what it has waited for a processor.
type threadTime struct{ ran, waited time.Duration }

// threadTimes are those of a process and of all below it (proc(5), schedstat); none where the kernel does not tell.
func threadTimes(pid int) map[int]threadTime {
	all := map[int]threadTime{}
	for _, tid := range threads(pid) {
		var ran, waited int64
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", tid))
		if err != nil {
			continue // it has ended
		}
		if _, err := fmt.Sscan(string(b), &ran, &waited); err == nil {
			all[tid] = threadTime{time.Duration(ran), time.Duration(waited)}
		}
	}
	return all
}

// processorOf is the one of every on which a thread is, where the kernel has put it.
func processorOf(tid int, every *unix.CPUSet) *unix.CPUSet {
	var one unix.CPUSet
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	const processor = 36 // counted from the state, which follows the name in parentheses (proc(5))
	_, rest, _ := strings.Cut(string(b[max(bytes.LastIndexByte(b, ')'), 0):]), " ")
	if fields := strings.Fields(rest); len(fields) > processor {
		if n, err := strconv.Atoi(fields[processor]); err == nil && n < maxProcessors && every.IsSet(n) {
			one.Set(n)
			return &one
		}
	}
	return every
}
