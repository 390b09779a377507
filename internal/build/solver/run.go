package solver

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/oci"
)

func (s *Solver) solve(ctx context.Context, e edge) (Result, error) {
	out, err := e.result.do(ctx, func(ctx context.Context) ([]Result, error) {
		out, err := s.run(ctx, e.state)
		return out, e.attribute(err)
	})
	if err != nil {
		return nil, err
	}
	if e.index >= len(out) {
		return nil, e.attribute(errors.New("output does not exist"))
	}
	return out[e.index], nil
}

// attribute names the vertex that an error came from, unless an input's did.
func (st *state) attribute(err error) error {
	var v *bkerrdefs.VertexError
	if err == nil || errors.As(err, &v) {
		return err
	}
	return bkerrdefs.WrapVertex(err, st.vertex.Digest)
}

// run finds the results of a vertex, or makes them.
func (s *Solver) run(ctx context.Context, st *state) ([]Result, error) {
	cm, err := s.pin(ctx, st)
	if err != nil {
		return nil, err
	}
	if cm.NoRecord {
		inputs, err := s.solveInputs(ctx, st)
		if err != nil {
			return nil, err
		}
		out, _, err := s.exec(ctx, st, inputs)
		return out, s.finish(st, err)
	}
	dk, err := s.definitionKey(ctx, st)
	if err != nil {
		return nil, err
	}
	if dk.trusted {
		out, err := s.load(ctx, dk.digest)
		if err == nil {
			st.rest(map[*state]bool{})
			return out, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	inputs, err := s.solveInputs(ctx, st)
	if err != nil {
		return nil, err
	}
	out, err := s.byContent(ctx, st, cm, dk, inputs)
	return out, err
}

// byContent looks a vertex up by what its inputs hold, or executes it.
func (s *Solver) byContent(ctx context.Context, st *state, cm *CacheMap, dk defKey, inputs []Result) (out []Result, err error) {
	defer func() {
		if err != nil {
			err = s.finish(st, err)
		}
	}()
	ck, err := contentKey(ctx, cm, inputs)
	if err != nil {
		return nil, err
	}
	if !st.vertex.IgnoreCache {
		if out, err := s.load(ctx, ck); err == nil || !errdefs.IsNotFound(err) {
			return s.hit(ctx, st, dk, out, err)
		}
	}
	st.report.start()
	unlock, err := s.lock(ctx, st, ck)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !st.vertex.IgnoreCache {
		if out, err := s.load(ctx, ck); err == nil || !errdefs.IsNotFound(err) {
			return s.hit(ctx, st, dk, out, err)
		}
	}
	out, cost, err := s.execInSlot(ctx, st, inputs)
	if err != nil {
		return nil, err
	}
	if out, err = s.save(ctx, st, ck, out, st.vertex.IgnoreCache, cost); err != nil {
		return nil, err
	}
	if out, err = s.save(ctx, st, dk.digest, out, true, cost); err != nil {
		return nil, err
	}
	return out, s.finish(st, nil)
}

// hit records the definition key as another name of what the content key
// found. It replaces: what the content names was decided by the first writer
// of the content key.
func (s *Solver) hit(ctx context.Context, st *state, dk defKey, out []Result, err error) ([]Result, error) {
	if err == nil {
		out, err = s.save(ctx, st, dk.digest, out, true, 0)
	}
	if err != nil {
		return nil, err
	}
	st.report.finish(true, nil)
	return out, nil
}

func (s *Solver) finish(st *state, err error) error {
	st.report.finish(false, err)
	return err
}

// pin asks the operation for its cache map.
func (s *Solver) pin(ctx context.Context, st *state) (*CacheMap, error) {
	return st.cacheMap.do(ctx, func(ctx context.Context) (*CacheMap, error) {
		source := len(st.inputs) == 0
		if source {
			st.report.start()
		}
		cm, err := s.askCacheMap(ctx, st)
		if err != nil {
			return nil, st.attribute(s.finish(st, err))
		}
		if source {
			st.report.pinned()
		}
		return cm, nil
	})
}

func (s *Solver) askCacheMap(ctx context.Context, st *state) (*CacheMap, error) {
	if s.operation(st); st.err != nil {
		return nil, st.err
	}
	return st.op.CacheMap(ctx, s.sink)
}

func (s *Solver) definitionKey(ctx context.Context, st *state) (defKey, error) {
	return st.key.do(ctx, func(ctx context.Context) (defKey, error) {
		keys := make([]defKey, len(st.inputs))
		group, ctx := errgroup.WithContext(ctx)
		var cm *CacheMap
		group.Go(func() (err error) {
			cm, err = s.pin(ctx, st)
			return err
		})
		for i, in := range st.inputs {
			group.Go(func() (err error) {
				keys[i], err = s.definitionKey(ctx, in.state)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return defKey{}, err
		}
		// A source that keeps no record is its pinned content, however often it
		// is fetched; to ignore the cache means nothing to it.
		trusted := cm.NoRecord || !st.vertex.IgnoreCache
		digests := make([]oci.Digest, len(keys))
		for i, k := range keys {
			digests[i] = k.digest
			trusted = trusted && k.trusted
		}
		return defKey{definitionKey(cm, st.inputs, digests), trusted}, nil
	})
}

// contentKey names a vertex's results by what its inputs hold.
func contentKey(ctx context.Context, cm *CacheMap, inputs []Result) (oci.Digest, error) {
	d := keyDoc{Version: contentVersion, Op: cm.Digest, Inputs: make([]keyInput, len(inputs))}
	group, ctx := errgroup.WithContext(ctx)
	for i, r := range inputs {
		in := cm.input(i)
		if in.Content == nil {
			d.Inputs[i] = keyInput{Result: resultID(r), Selector: in.Selector}
			continue
		}
		group.Go(func() error {
			dgst, err := in.Content(ctx, r)
			d.Inputs[i] = keyInput{Content: dgst}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	return d.digest(), nil
}

// resultID is the ID of a result; an operation may return nil for the empty
// one.
func resultID(r Result) oci.Digest {
	if r == nil {
		return ""
	}
	return r.ID()
}

func (s *Solver) solveInputs(ctx context.Context, st *state) ([]Result, error) {
	out := make([]Result, len(st.inputs))
	group, ctx := errgroup.WithContext(ctx)
	for i, in := range st.inputs {
		group.Go(func() (err error) {
			out[i], err = s.solve(ctx, in)
			return err
		})
	}
	return out, group.Wait()
}

func (s *Solver) lock(ctx context.Context, st *state, key oci.Digest) (func(), error) {
	done := func() {}
	unlock, err := s.cache.Lock(ctx, key, func() { done = st.report.waits() })
	done()
	return unlock, err
}

func (s *Solver) execInSlot(ctx context.Context, st *state, inputs []Result) ([]Result, time.Duration, error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
	defer func() { <-s.slots }()
	return s.exec(ctx, st, inputs)
}

func (s *Solver) exec(ctx context.Context, st *state, inputs []Result) ([]Result, time.Duration, error) {
	st.report.start()
	began := time.Now()
	out, err := st.op.Exec(ctx, inputs, s.sink)
	s.keep(out)
	if err != nil {
		return nil, 0, err
	}
	return out, time.Since(began), nil
}

func (s *Solver) load(ctx context.Context, key oci.Digest) ([]Result, error) {
	out, err := s.cache.Load(ctx, key)
	s.keep(out)
	return out, err
}

func (s *Solver) save(ctx context.Context, st *state, key oci.Digest, out []Result, replace bool, cost time.Duration) ([]Result, error) {
	winner, err := s.cache.Save(ctx, key, out, replace, cost, st.vertex.Name)
	if err != nil {
		return nil, err
	}
	if len(winner) != len(out) {
		return nil, errors.New("a record has other outputs than the step: the store was written by another version")
	}
	s.keep(winner)
	return winner, nil
}

// keep remembers results, to be closed with the solver.
func (s *Solver) keep(rs []Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rs {
		if r != nil {
			s.kept[r] = true
		}
	}
}

// rest reports everything below and including st as cached, inputs first.
func (st *state) rest(seen map[*state]bool) {
	if seen[st] {
		return
	}
	seen[st] = true
	for _, in := range st.inputs {
		in.rest(seen)
	}
	st.report.rest()
}
