package solver

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"den/internal/oci"
	"den/internal/progress"
)

// Options of a Solver.
type Options struct {
	// Slots is how many operations execute at once; 0 chooses by the number of
	// processors. Steps wait for the network and for disks more than they
	// compute.
	Slots int
	// Sink is told what happens; nil discards it.
	Sink progress.Sink
}

// A Solver solves the vertices of one build, each once. It is safe for
// concurrent use.
type Solver struct {
	cache Cache
	sink  progress.Sink
	slots chan struct{}

	mu     sync.Mutex
	states map[stateKey]*state
	// kept are the results to close. Losers of a race are among them: they
	// are few.
	kept map[Result]bool
}

type stateKey struct {
	digest oci.Digest
	ignore bool
}

// A state is what the solver knows of one vertex.
type state struct {
	vertex *Vertex
	inputs []edge
	report *report

	cacheMap flight[*CacheMap]
	key      flight[defKey]
	result   flight[[]Result]

	once sync.Once
	op   Op
	err  error
}

type edge struct {
	*state
	index int
}

// A defKey is a definition key. It may be looked up only if it is trusted:
// nothing below it ignores the cache.
type defKey struct {
	digest  oci.Digest
	trusted bool
}

// New returns a Solver that keeps results in cache.
func New(cache Cache, o Options) *Solver {
	if o.Slots <= 0 {
		o.Slots = max(8, 2*runtime.NumCPU())
	}
	if o.Sink == nil {
		o.Sink = progress.Discard
	}
	return &Solver{
		cache:  cache,
		sink:   o.Sink,
		slots:  make(chan struct{}, o.Slots),
		states: map[stateKey]*state{},
		kept:   map[Result]bool{},
	}
}

// Solve returns the results of the edges, in order. They are the solver's,
// valid until Close. An error names the vertex it belongs to by BuildKit's
// errdefs.VertexError.
func (s *Solver) Solve(ctx context.Context, edges ...Edge) ([]Result, error) {
	out := make([]Result, len(edges))
	group, ctx := errgroup.WithContext(ctx)
	for i, e := range edges {
		st := s.state(e.Vertex)
		group.Go(func() error {
			if err := s.refuse(ctx, st); err != nil {
				return err
			}
			r, err := s.solve(ctx, edge{st, e.Index})
			out[i] = r
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// Close ends the leases on all results and reports what was never needed. No
// Solve may be running.
func (s *Solver) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for r := range s.kept {
		errs = append(errs, r.Close())
	}
	clear(s.kept)
	for _, st := range s.states {
		st.report.end()
	}
	return errors.Join(errs...)
}

// state returns what is known of v, reporting it and its inputs if they are
// new. It is iterative: a chain may be long.
func (s *Solver) state(root *Vertex) *state {
	s.mu.Lock()
	defer s.mu.Unlock()
	stack := []*Vertex{root}
	for len(stack) > 0 {
		v := stack[len(stack)-1]
		if s.states[v.key()] != nil {
			stack = stack[:len(stack)-1]
			continue
		}
		before := len(stack)
		for _, in := range v.Inputs {
			if s.states[in.Vertex.key()] == nil {
				stack = append(stack, in.Vertex)
			}
		}
		if len(stack) > before {
			continue
		}
		st := &state{vertex: v, report: newReport(s.sink, v)}
		for _, in := range v.Inputs {
			st.inputs = append(st.inputs, edge{s.states[in.Vertex.key()], in.Index})
		}
		s.states[v.key()] = st
		stack = stack[:len(stack)-1]
	}
	return s.states[root.key()]
}

func (v *Vertex) key() stateKey { return stateKey{v.Digest, v.IgnoreCache} }
