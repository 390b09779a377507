// Package progress carries what is happening to whoever shows it.
//
// Work reports Events to a Sink; the terminal, plain log lines and, later,
// Docker's JSON lines and BuildKit's status stream are Sinks. The vocabulary
// is BuildKit's: a vertex is one step, a status is one measured part of it (a
// layer that arrives), a log is output of it.
package progress

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// An Event carries exactly one of its fields.
type Event struct {
	Vertex  *Vertex
	Status  *Status
	Log     *Log
	Warning *Warning
}

// A Vertex is reported when it becomes known, starts, and completes: each time
// whole, so that the last report of a Digest is its state.
type Vertex struct {
	Digest    digest.Digest
	Inputs    []digest.Digest
	Name      string
	Started   *time.Time
	Completed *time.Time
	Cached    bool
	// Error is the text of a failure, empty while all is well.
	Error string
	// Group is the display group of BuildKit's progress groups, or empty.
	Group string
}

// A Status measures a part of a vertex. Current and Total are bytes; Total is
// 0 where it is not known.
type Status struct {
	ID        string
	Vertex    digest.Digest
	Name      string
	Current   int64
	Total     int64
	Timestamp time.Time
	Started   *time.Time
	Completed *time.Time
}

// A Log is a piece of a vertex's output; Stream is 1 or 2.
type Log struct {
	Vertex    digest.Digest
	Stream    int
	Data      []byte
	Timestamp time.Time
}

// A Warning is a finding about the build's input, such as a lint rule's.
type Warning struct {
	Vertex digest.Digest
	Level  int
	Short  []byte
	Detail [][]byte
	URL    string
	// Filename and Source (the whole file), with 1-based lines From to To,
	// locate the finding; Filename is empty when it has no place.
	Filename string
	Source   []byte
	From, To int
}

// A Sink takes events. It is safe for concurrent use and does not fail: what
// cannot be shown is dropped.
type Sink interface {
	Event(Event)
}

// Func is a function as a Sink.
type Func func(Event)

// Event calls f.
func (f Func) Event(e Event) { f(e) }

// Discard drops every event.
var Discard Sink = Func(func(Event) {})
