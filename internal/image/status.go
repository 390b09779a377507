package image

import (
	"io"
	"sync"
	"time"

	"den/internal/oci"
	"den/internal/progress"
)

// statusEvery is how often a transfer is reported at most.
const statusEvery = 50 * time.Millisecond

// status reports the way of one blob: a single ID whose Name is the phase it
// is in. The zero of every field of Sink drops the reports.
type status struct {
	sink   progress.Sink
	vertex oci.Digest
	id     string

	mu      sync.Mutex
	name    string
	total   int64
	last    time.Time
	started *time.Time
}

func newStatus(sink progress.Sink, vertex oci.Digest, d oci.Digest) *status {
	if sink == nil {
		sink = progress.Discard
	}
	return &status{sink: sink, vertex: vertex, id: shortID(d)}
}

// phase begins a phase of total bytes, 0 if that is not known.
func (s *status) phase(name string, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == name {
		return
	}
	now := time.Now()
	if s.started == nil {
		s.started = &now
	}
	s.name, s.total = name, max(0, total)
	s.report(0, now, nil)
}

// at reports how far the phase got.
func (s *status) at(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.last) >= statusEvery {
		s.report(n, now, nil)
	}
}

// done ends the status with a last word.
func (s *status) done(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.started == nil {
		s.started = &now
	}
	s.name = name
	s.report(s.total, now, &now)
}

func (s *status) report(n int64, now time.Time, completed *time.Time) {
	s.last = now
	s.sink.Event(progress.Event{Status: &progress.Status{
		ID: s.id, Vertex: s.vertex, Name: s.name,
		Current: n, Total: s.total,
		Timestamp: now, Started: s.started, Completed: completed,
	}})
}

// counter tells moved how much was read through it.
type counter struct {
	io.Reader
	n     int64
	moved func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	c.moved(c.n)
	return n, err
}
