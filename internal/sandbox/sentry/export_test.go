package sentry

import (
	"os"

	"den/internal/sandbox"
)

// Spawned is how many sentries the executor has started.
func (e *Executor) Spawned() int {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	return e.pool.spawned
}

// HasGofer says whether a sandbox of the executor has one.
func HasGofer(s sandbox.Sandbox) bool { return s.(*running).gofer != nil }

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
