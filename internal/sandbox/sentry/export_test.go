package sentry

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// Holder is the process above a spare sentry.
func (s *Spare) Holder() int { return s.child.holder }

// Spawned is how many sentries the executor has started.
func (e *Executor) Spawned() int {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	return e.pool.spawned
}

// HasGofer says whether a sandbox of the executor has one.
func HasGofer(s sandbox.Sandbox) bool { return s.(*running).gofer != nil }

// LeaveCPUID is leaveCPUID.
func LeaveCPUID() error { return leaveCPUID() }

// Gathers is gathers.
func Gathers() bool { return gathers() }

// Gather is gather, for a decision of the test's own.
func Gather(s sandbox.Sandbox, every *unix.CPUSet, look func(time.Time, float64, float64) bool, end <-chan struct{}) {
	gather(s.Pid(), every, look, end)
}

// FilesKept is how many files the sentries that wait keep open.
func (e *Executor) FilesKept() (n int) {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	for _, c := range e.pool.waiting {
		for _, f := range []*os.File{c.control, c.alive, c.status, c.log} {
			if f != nil {
				n++
			}
		}
	}
	return n
}
