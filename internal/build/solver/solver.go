// Package solver runs a graph of operations and remembers what they made.
//
// It knows vertices, keys and results, and nothing of containers, files or
// LLB. A vertex is looked up under two keys. Its definition key is a pure
// function of the definition and of its pinned sources, so that a hit needs
// none of the inputs; its content key names what the inputs hold, so that a
// changed input with the same relevant content still hits. Only when both miss
// is the operation executed, under the content key's lock, which other
// processes respect; the first result that is saved wins everywhere.
//
// Rules that keep it safe: nobody waits for a key while holding a worker slot;
// failures are never saved; a vertex that ignores the cache, and everything
// above it, is looked up by content only and overwrites the records it finds.
package solver

import (
	"context"
	"time"

	"den/internal/oci"
	"den/internal/progress"
)

// A Result is what one output of a vertex holds: a stack of layers, a
// directory. The solver that made or loaded it owns it and closes it.
type Result interface {
	// ID names the content: equal results have equal IDs. The empty result
	// (scratch) may have the empty ID.
	ID() oci.Digest
	// Close ends the lease on what the result names.
	Close() error
}

// An Op is the work of one vertex. The sink takes the statuses and logs of
// that vertex; the solver itself reports start, completion and errors.
type Op interface {
	// CacheMap says what the result depends on, besides the inputs. It is
	// called once. Sources pin themselves here (a tag's digest, a branch's
	// commit, the content of a local directory).
	CacheMap(ctx context.Context, sink progress.Sink) (*CacheMap, error)
	// Exec makes the results, one for each output. The inputs are in the order
	// of the vertex's edges and stay the solver's. It holds a worker slot
	// unless the cache map says NoRecord.
	Exec(ctx context.Context, inputs []Result, sink progress.Sink) ([]Result, error)
}

// A CacheMap says how to name a vertex's result before it exists.
type CacheMap struct {
	// Digest covers all that the operation does: its arguments, and for a
	// source its pinned content. It never covers a session, a secret's value,
	// or where something lies on this machine.
	Digest oci.Digest
	// NoRecord is for operations that are cheap to repeat, as sources are that
	// the store keeps under their own digest: Exec runs each time, in no slot,
	// under no lock, and nothing is recorded.
	NoRecord bool
	// Inputs is parallel to the vertex's edges; missing ones are zero.
	Inputs []InputKey
}

// An InputKey says which part of an input counts.
type InputKey struct {
	// Selector is the part that is used, such as a mount's sub-directory.
	Selector string
	// Content digests the used part of the input's result. Nil: the result's
	// ID and the selector count.
	Content func(ctx context.Context, r Result) (oci.Digest, error)
}

// A Cache keeps results across builds and processes.
type Cache interface {
	// Load returns the results recorded under key, leased, or
	// errdefs.ErrNotFound, also when part of what the record names is gone.
	Load(ctx context.Context, key oci.Digest) ([]Result, error)
	// Save records out under key and returns the results that the record
	// names from now on: out itself, or leased ones of an earlier record,
	// which wins unless replace is set or its results are gone. It never
	// closes out. Cost and name say what the record saves.
	Save(ctx context.Context, key oci.Digest, out []Result, replace bool, cost time.Duration, name string) ([]Result, error)
	// Lock takes key across processes and keeps it alive until unlock is
	// called. It calls waiting once if it has to wait. A holder that fell
	// silent may be overtaken: then two processes do the same work, and Save
	// decides.
	Lock(ctx context.Context, key oci.Digest, waiting func()) (unlock func(), err error)
}

// A Resolver makes the operation of V, a definition's own vertex type. The
// solver does not look into it.
type Resolver[V any] func(V) (Op, error)

// A Vertex is one operation of the graph and what it takes.
type Vertex struct {
	// Digest names the vertex in progress and in errors; vertices of equal
	// Digest and IgnoreCache are solved once.
	Digest oci.Digest
	// Name is shown to people.
	Name string
	// Group is the display group, or empty.
	Group string
	// IgnoreCache forces execution.
	IgnoreCache bool
	// Inputs are the edges the operation takes, in its own order.
	Inputs []Edge
	// Op makes the operation; it is called at most once, when first needed.
	Op func() (Op, error)
}

// An Edge is one output of a vertex.
type Edge struct {
	Vertex *Vertex
	Index  int
}
