package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
)

// maxRecordedLayers bounds what is believed of one record's output. No stack
// that can be mounted is higher.
const maxRecordedLayers = 1 << 12

// bumpEvery is how often the holder of a key says that it is alive; the store
// takes one that is silent for a minute for hung.
const bumpEvery = 10 * time.Second

type cache struct {
	store  *store.Store
	images *image.Images
	scopes []string // the first is written to, all are read
}

// recordData is what a record's Data holds: the stack of each output.
type recordData struct {
	Outputs [][]image.Layer `json:"outputs"`
}

// NewCache keeps results as records of the store, for every process that uses
// the store. A record names layers by diffID and, for layers that came from a
// registry, the blob and the repository that they can be had from again.
//
// Scopes keep records apart whose writers do not trust each other alike: a
// record is found only by who names its scope. New ones are written to the
// first scope, all are read, in this order; none is the default scope, "".
func NewCache(st *store.Store, images *image.Images, scopes ...string) solver.Cache {
	if len(scopes) == 0 {
		scopes = []string{""}
	}
	return &cache{store: st, images: images, scopes: scopes}
}

// key names a record in the scope that is written to.
func (c *cache) key(key oci.Digest) oci.Digest { return store.ScopedKey(c.scopes[0], key) }

// Load returns the results recorded under key. Each layer that is in the store
// is leased; one that is not must be fetchable, or the record is a miss. Nothing is
// downloaded. What another rung has made is made anew at once, for it may be that this
// process can not read it in whole, and then it is a miss, too.
func (c *cache) Load(ctx context.Context, key oci.Digest) ([]solver.Result, error) {
	miss := fmt.Errorf("record %s: %w", key, errdefs.ErrNotFound)
	for _, scope := range c.scopes {
		recs, err := c.store.Records(ctx, store.ScopedKey(scope, key))
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			if rec.Scope != scope {
				continue // written by somebody who made up the key
			}
			out, err := c.open(ctx, key, rec)
			if err == nil || !errdefs.IsNotFound(err) {
				return out, err
			}
			miss = err
		}
	}
	return nil, miss
}

func (c *cache) open(ctx context.Context, key oci.Digest, rec *store.Record) (_ []solver.Result, err error) {
	var data recordData
	if err := json.Unmarshal(rec.Data, &data); err != nil {
		// A record that another version wrote, or a damaged one, is absent.
		return nil, fmt.Errorf("record %s: %w: %w", key, err, errdefs.ErrNotFound)
	}
	var out []solver.Result
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(out))
		}
	}()
	for _, layers := range data.Outputs {
		r, err := c.openStack(ctx, layers)
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", key, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (c *cache) openStack(ctx context.Context, layers []image.Layer) (*Ref, error) {
	if len(layers) > maxRecordedLayers {
		return nil, fmt.Errorf("%d layers: %w: %w", len(layers), oci.ErrTooLarge, errdefs.ErrNotFound)
	}
	for _, l := range layers {
		if err := oci.CheckDigest(l.DiffID); err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
	}
	r := newRef(c.store, c.images, layers, nil, "")
	if err := r.lease(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := r.ownKin(ctx); err != nil {
		if ctx.Err() == nil && !errdefs.IsResourceExhausted(err) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Save records out under key. Results that cannot be named for other processes,
// or whose layers were not checked against their diffIDs yet, are not recorded.
func (c *cache) Save(ctx context.Context, key oci.Digest, out []solver.Result, replace bool, cost time.Duration, name string) ([]solver.Result, error) {
	key = c.key(key)
	rec := store.Record{Scope: c.scopes[0], Op: name, CostNanos: cost.Nanoseconds(), Created: time.Now()}
	var data recordData
	seen := map[oci.Digest]bool{}
	for _, res := range out {
		r, err := asRef(res)
		if err != nil {
			return nil, err
		}
		if r == nil || !r.verified() {
			return out, nil
		}
		layers := r.Layers()
		data.Outputs = append(data.Outputs, layers)
		for _, l := range layers {
			if !seen[l.DiffID] {
				seen[l.DiffID] = true
				rec.Layers = append(rec.Layers, l.DiffID)
			}
		}
	}
	var err error
	if rec.Data, err = json.Marshal(data); err != nil {
		return nil, err
	}
	winner, err := c.store.PutRecord(ctx, key, rec, replace)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", key, err)
	}
	if winner.Scope == rec.Scope && bytes.Equal(winner.Data, rec.Data) {
		return out, nil
	}
	// Theirs may be the same stack with other times of creation; only if all
	// take the same one do all builds get the same image.
	var theirs []solver.Result
	if err = errdefs.ErrNotFound; winner.Scope == rec.Scope {
		theirs, err = c.open(ctx, key, winner)
	}
	if err == nil && len(theirs) == len(out) {
		return theirs, nil
	}
	if err := closeAll(theirs); err != nil {
		return nil, err
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	if _, err := c.store.PutRecord(ctx, key, rec, true); err != nil {
		return nil, fmt.Errorf("record %s: %w", key, err)
	}
	return out, nil
}

// Lock takes key among all processes of the store and keeps saying that its
// holder is alive.
func (c *cache) Lock(ctx context.Context, key oci.Digest, waiting func()) (func(), error) {
	w, err := c.store.Work(ctx, "k", string(c.key(key)), waiting)
	if err != nil {
		return nil, err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(bumpEvery)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				w.Bump()
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		w.Done()
	}, nil
}

func closeAll(results []solver.Result) error {
	var errs []error
	for _, r := range results {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}
