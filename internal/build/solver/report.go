package solver

import (
	"sync"
	"time"

	"den/internal/oci"
	"den/internal/progress"
)

// A report is what was said of one vertex so far.
type report struct {
	mu     sync.Mutex
	sink   progress.Sink
	vertex progress.Vertex
	// ready is when a source was pinned: the time at which it completes if
	// nobody needs its files.
	ready time.Time
}

func newReport(sink progress.Sink, v *Vertex) *report {
	inputs := make([]oci.Digest, len(v.Inputs))
	for i, in := range v.Inputs {
		inputs[i] = in.Vertex.Digest
	}
	r := &report{sink: sink, vertex: progress.Vertex{
		Digest: v.Digest, Inputs: inputs, Name: v.Name, Group: v.Group,
	}}
	r.emit()
	return r
}

// emit sends a copy, since the vertex goes on changing.
func (r *report) emit() {
	v := r.vertex
	r.sink.Event(progress.Event{Vertex: &v})
}

// start reports that the vertex works. A vertex starts once, even if it is
// pinned first and executed later.
func (r *report) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.vertex.Started != nil && r.vertex.Completed == nil {
		return
	}
	now := time.Now()
	r.vertex.Started, r.vertex.Completed, r.vertex.Cached = &now, nil, false
	r.emit()
}

// pinned remembers that a source knows its content and rests.
func (r *report) pinned() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready = time.Now()
}

// finish reports completion with the error, if any, that it ended with.
func (r *report) finish(cached bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.vertex.Started == nil {
		r.vertex.Started = &now
	}
	r.vertex.Completed, r.vertex.Cached = &now, cached
	if err != nil {
		r.vertex.Error = err.Error()
	}
	r.emit()
}

// end completes a source that was pinned, and then not needed since the build
// failed elsewhere.
func (r *report) end() {
	r.mu.Lock()
	pinned := !r.ready.IsZero()
	r.mu.Unlock()
	if pinned {
		r.rest()
	}
}

// rest reports a vertex as cached unless it has completed or is at work.
func (r *report) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	working := r.vertex.Started != nil && r.ready.IsZero()
	if r.vertex.Completed != nil || working {
		return
	}
	end := time.Now()
	if r.vertex.Started == nil {
		r.vertex.Started = &end
	}
	if !r.ready.IsZero() {
		end = r.ready
	}
	r.vertex.Completed, r.vertex.Cached = &end, true
	r.emit()
}

// waits shows a status while another process works on the same key.
func (r *report) waits() (done func()) {
	now := time.Now()
	s := progress.Status{
		ID: "waiting for another den that does this step", Vertex: r.vertex.Digest,
		Timestamp: now, Started: &now,
	}
	s.Name = s.ID
	first := s
	r.sink.Event(progress.Event{Status: &first})
	return func() {
		end := time.Now()
		s.Timestamp, s.Completed = end, &end
		r.sink.Event(progress.Event{Status: &s})
	}
}
