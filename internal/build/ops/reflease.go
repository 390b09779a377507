package ops

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"den/internal/image"
	"den/internal/store"
)

// A lease keeps one layer in the store, for several Refs: its tree, or only what the
// tree can be made of, a blob or the tree that another rung made.
type lease struct {
	tree  *store.Layer
	blob  *store.Blob
	kin   *store.Layer
	users atomic.Int32
}

func newLease(tree *store.Layer, blob *store.Blob) *lease {
	ls := &lease{tree: tree, blob: blob}
	ls.users.Store(1)
	return ls
}

// share returns ls for one more user; nil stays nil.
func (ls *lease) share() *lease {
	if ls != nil {
		ls.users.Add(1)
	}
	return ls
}

func (ls *lease) unpacked() bool { return ls != nil && ls.tree != nil }

func (ls *lease) ofKin() bool { return ls != nil && ls.kin != nil }

func (ls *lease) close() error {
	if ls == nil || ls.users.Add(-1) > 0 {
		return nil
	}
	if ls.blob != nil {
		ls.blob.Close()
	}
	var errs []error
	for _, t := range []*store.Layer{ls.tree, ls.kin} {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}

// lease takes what the store has of each layer, so that it stays. A layer that
// is neither there nor to be had elsewhere is an error of class ErrNotFound.
func (r *Ref) lease(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, l := range r.layers {
		if r.leases[i] != nil {
			continue
		}
		ls, err := leaseOf(ctx, r.store, l)
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
		r.leases[i] = ls
	}
	return nil
}

// leaseOf takes what the store has of a layer: its tree, else its blob, else its tree in
// the other form, else nothing, which is an error only where nobody else has it.
func leaseOf(ctx context.Context, st *store.Store, l image.Layer) (*lease, error) {
	tree, err := st.Layer(ctx, l.DiffID)
	if err == nil {
		return newLease(tree, nil), nil
	}
	if errdefs.IsNotFound(err) && l.Blob != nil {
		var blob *store.Blob
		if blob, err = st.Blob(ctx, l.Blob.Digest); err == nil {
			return newLease(nil, blob), nil
		}
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	if kin, kerr := st.KinLayer(ctx, l.DiffID); kerr == nil {
		ls := newLease(nil, nil)
		ls.kin = kin
		return ls, nil
	}
	if l.Blob == nil || l.Repo == "" {
		return nil, err
	}
	return nil, nil
}

// ownKin makes those trees of r that are here only as another rung has made them.
func (r *Ref) ownKin(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var layers []image.Layer
	var at []int
	for i, ls := range r.leases {
		if ls.ofKin() {
			layers, at = append(layers, r.layers[i]), append(at, i)
		}
	}
	if len(at) == 0 {
		return nil
	}
	trees, err := r.images.Trees(ctx, layers, image.TreeOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for n, i := range at {
		errs = append(errs, r.leases[i].close())
		r.leases[i] = newLease(trees[n], nil)
	}
	return errors.Join(errs...)
}
