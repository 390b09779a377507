package solver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/progress"
)

// A toy is a vertex that makes strings.
type toy struct {
	name   string
	inputs []*toy
	// key stands for the operation's arguments; the name if empty.
	key string
	// make returns the result; the name and the inputs' values if nil.
	make func(ctx context.Context, in []string) (string, error)
	// content, where set, digests inputs instead of taking their ID.
	content func(string) string
	source  bool // keeps no record
	ignore  bool
	pin     func(ctx context.Context) error
	refused error // of a step that cannot be executed here
	image   bool  // its content is what its key says
	unseen  bool  // and was never here
}

// An imageToy is a source whose content its key says.
type imageToy struct{ toyOp }

func (t imageToy) Unseen(context.Context) bool { return t.unseen }

func (t toyOp) Refused(context.Context) error { return t.refused }

// A log counts what happened, in order.
type trail struct {
	mu   sync.Mutex
	runs []string
}

func (l *trail) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs = append(l.runs, s)
}

func (l *trail) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.runs
	l.runs = nil
	slices.Sort(out)
	return out
}

type value string

func (v value) ID() oci.Digest { return digest.FromString(string(v)) }
func (v value) Close() error   { return nil }

type toyOp struct {
	*toy
	trail *trail
}

func (t toyOp) CacheMap(ctx context.Context, _ progress.Sink) (*CacheMap, error) {
	if t.pin != nil {
		if err := t.pin(ctx); err != nil {
			return nil, err
		}
	}
	key := t.key
	if key == "" {
		key = t.name
	}
	cm := &CacheMap{Digest: digest.FromString(key), NoRecord: t.source}
	for range t.inputs {
		var in InputKey
		if t.content != nil {
			in.Content = func(_ context.Context, r Result) (oci.Digest, error) {
				return digest.FromString(t.content(string(r.(value)))), nil
			}
		}
		cm.Inputs = append(cm.Inputs, in)
	}
	return cm, nil
}

func (t toyOp) Exec(ctx context.Context, inputs []Result, _ progress.Sink) ([]Result, error) {
	if t.refused != nil {
		return nil, t.refused
	}
	t.trail.add(t.name)
	in := make([]string, len(inputs))
	for i, r := range inputs {
		in[i] = string(r.(value))
	}
	if t.make == nil {
		return []Result{value(fmt.Sprintf("%s%v", t.name, in))}, nil
	}
	out, err := t.make(ctx, in)
	if err != nil {
		return nil, err
	}
	return []Result{value(out)}, nil
}

func graph(l *trail, t *toy) Edge {
	memo := map[*toy]*Vertex{}
	var rec func(t *toy) *Vertex
	rec = func(t *toy) *Vertex {
		if v := memo[t]; v != nil {
			return v
		}
		v := &Vertex{Digest: digest.FromString("vertex " + t.name), Name: t.name, IgnoreCache: t.ignore}
		v.Op = func() (Op, error) {
			if t.image {
				return imageToy{toyOp{t, l}}, nil
			}
			return toyOp{t, l}, nil
		}
		for _, in := range t.inputs {
			v.Inputs = append(v.Inputs, Edge{Vertex: rec(in)})
		}
		memo[t] = v
		return v
	}
	return Edge{Vertex: rec(t)}
}

// memCache is a Cache that several solvers share as processes share a store.
type memCache struct {
	mu      sync.Mutex
	records map[oci.Digest][]Result
	locks   map[oci.Digest]chan struct{}
	onLock  func()
}

func newMemCache() *memCache {
	return &memCache{records: map[oci.Digest][]Result{}, locks: map[oci.Digest]chan struct{}{}}
}

func (c *memCache) Load(_ context.Context, key oci.Digest) ([]Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.records[key]; ok {
		return r, nil
	}
	return nil, fmt.Errorf("record %s: %w", key, errdefs.ErrNotFound)
}

func (c *memCache) Save(_ context.Context, key oci.Digest, out []Result, replace bool, _ time.Duration, _ string) ([]Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.records[key]; ok && !replace {
		return r, nil
	}
	c.records[key] = out
	return out, nil
}

func (c *memCache) Lock(ctx context.Context, key oci.Digest, waiting func()) (func(), error) {
	c.mu.Lock()
	l := c.locks[key]
	if l == nil {
		l = make(chan struct{}, 1)
		c.locks[key] = l
	}
	onLock := c.onLock
	c.mu.Unlock()
	if onLock != nil {
		onLock()
	}
	unlock := func() { <-l }
	select {
	case l <- struct{}{}:
		return unlock, nil
	default:
	}
	waiting()
	select {
	case l <- struct{}{}:
		return unlock, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// solveToy solves t with a new solver over cache, as a new process would.
func solveToy(t *testing.T, cache Cache, l *trail, target *toy, sink progress.Sink) (string, error) {
	t.Helper()
	s := New(cache, Options{Sink: sink})
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	out, err := s.Solve(t.Context(), graph(l, target))
	if err != nil {
		return "", err
	}
	return string(out[0].(value)), nil
}
