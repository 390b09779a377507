package ops

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"den/internal/build/solver"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
	"den/internal/tree"
)

// A Ref is the result of an op: a stack of layers, or a directory of the
// user's that was not copied yet. It is safe for concurrent use.
type Ref struct {
	store  *store.Store
	images *image.Images
	// sink and vertex are told of downloads, at whatever time they happen.
	sink   progress.Sink
	vertex oci.Digest

	id     oci.Digest
	layers []image.Layer // bottom first
	local  LocalTree     // instead of layers

	mu     sync.Mutex
	leases []*lease // parallel to layers; nil where nothing is in the store
	fs     tree.FS  // the view, open while it has readers
	users  int      // of fs
	closed bool
}

// LocalTree is a directory that is read in place.
type LocalTree interface {
	// Digest is that of the directory's content.
	Digest() oci.Digest
	// FS reads it; the function ends the reading.
	FS(ctx context.Context) (tree.FS, func(), error)
	// Import copies it into the store as a layer.
	Import(ctx context.Context) (image.Layer, *store.Layer, error)
}

var _ solver.Result = (*Ref)(nil)

// newRef returns a Ref of these layers, bottom first, none of them open yet.
func (e *Env) newRef(layers []image.Layer, vertex oci.Digest) *Ref {
	return newRef(e.Store, e.Images, layers, e.sink(), vertex)
}

func newRef(st *store.Store, images *image.Images, layers []image.Layer, sink progress.Sink, vertex oci.Digest) *Ref {
	return &Ref{
		store: st, images: images, sink: sink, vertex: vertex,
		id: stackID(layers), layers: layers, leases: make([]*lease, len(layers)),
	}
}

// newLocalRef returns a Ref of a directory that is read where it is.
func (e *Env) newLocalRef(t LocalTree, vertex oci.Digest) *Ref {
	return &Ref{store: e.Store, images: e.Images, sink: e.sink(), vertex: vertex, id: t.Digest(), local: t}
}

// stackID is the ChainID of layers; the empty stack has the empty one.
func stackID(layers []image.Layer) oci.Digest {
	ids := make([]oci.Digest, len(layers))
	for i, l := range layers {
		ids[i] = l.DiffID
	}
	return oci.ChainID(ids)
}

// push returns a new Ref: r with one more layer on top, whose lease it takes
// over, also on error. A nil r is the empty stack. r stays open.
func (e *Env) push(ctx context.Context, r *Ref, top image.Layer, l *store.Layer, vertex oci.Digest) (*Ref, error) {
	var below []image.Layer
	var leases []*lease
	if r != nil {
		if err := r.settle(ctx); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		below = r.layers
		for _, ls := range r.leases {
			leases = append(leases, ls.share())
		}
	}
	out := e.newRef(append(below[:len(below):len(below)], top), vertex)
	if r != nil && r.sink != nil {
		// What lies below is still fetched in the name of whoever brought it.
		out.sink, out.vertex = r.sink, r.vertex
	}
	out.leases = append(leases, newLease(l, nil))
	return out, nil
}

// clone returns another handle on the same stack, to be closed by itself.
func (r *Ref) clone() *Ref {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &Ref{
		store: r.store, images: r.images, sink: r.sink, vertex: r.vertex,
		id: r.id, layers: r.layers, local: r.local, leases: make([]*lease, len(r.leases)),
	}
	for i, ls := range r.leases {
		out.leases[i] = ls.share()
	}
	return out
}

// ID is the ChainID of the stack, or the content digest of a local directory.
func (r *Ref) ID() oci.Digest { return r.id }

// Layers are the stack, bottom first; empty for a local directory.
func (r *Ref) Layers() []image.Layer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.layers
}

// Local is the directory that r reads in place, or nil when r is layers.
func (r *Ref) Local() LocalTree {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.local
}

// Trees are the unpacked layers, bottom first; what is missing is downloaded
// and unpacked, and a local directory is copied into the store. They belong to
// r and are valid until it is closed.
func (r *Ref) Trees(ctx context.Context) ([]*store.Layer, error) {
	if err := r.settle(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.materialise(ctx); err != nil {
		return nil, err
	}
	out := make([]*store.Layer, len(r.leases))
	for i, ls := range r.leases {
		out[i] = ls.tree
	}
	return out, nil
}

// settle turns a local directory into a layer.
func (r *Ref) settle(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("ref %s: already closed: %w", r.id, errdefs.ErrFailedPrecondition)
	}
	if r.local == nil {
		return nil
	}
	layer, l, err := r.local.Import(ctx)
	if err != nil {
		return err
	}
	r.layers, r.leases, r.local = []image.Layer{layer}, []*lease{newLease(l, nil)}, nil
	return nil
}

// materialise fills r.leases. The caller holds r.mu.
func (r *Ref) materialise(ctx context.Context) error {
	complete := true
	for _, ls := range r.leases {
		complete = complete && ls.unpacked()
	}
	if complete {
		return nil
	}
	sink := r.sink
	if sink == nil {
		sink = progress.Discard
	}
	trees, err := r.images.Trees(ctx, r.layers, image.TreeOptions{Sink: sink, Vertex: r.vertex})
	if err != nil {
		return err
	}
	var errs []error
	for i, l := range trees {
		if r.leases[i].unpacked() {
			errs = append(errs, l.Close())
			continue
		}
		errs = append(errs, r.leases[i].close())
		r.leases[i] = newLease(l, nil)
	}
	return errors.Join(errs...)
}

// FS is a merged read view of r; what is missing is downloaded and unpacked,
// but a local directory is read in place. The function ends the reading; the
// view is not to be used after r is closed. Users at the same time share one
// view, and with the last of them it is closed: it has a descriptor for each
// layer and remembers names, and a build has as many Refs as steps.
func (r *Ref) FS(ctx context.Context) (tree.FS, func(), error) {
	if local := r.Local(); local != nil {
		return local.FS(ctx)
	}
	trees, err := r.Trees(ctx)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fs == nil {
		view, err := tree.Stack(dirsOf(trees))
		if err != nil {
			return nil, nil, fmt.Errorf("read layers: %w", err)
		}
		r.fs = view
	}
	r.users++
	return r.fs, sync.OnceFunc(r.endReading), nil
}

func (r *Ref) endReading() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users--; r.users == 0 && r.fs != nil {
		_ = r.fs.Close() // it was only read
		r.fs = nil
	}
}

// reportTo says where downloads of r's layers are shown, unless the vertex that
// named them takes them.
func (r *Ref) reportTo(sink progress.Sink, vertex oci.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.vertex == "" {
		r.sink, r.vertex = sink, vertex
	}
}

// verified says whether the tree of every layer of r is in the store, in whatever form,
// and so known to be what its diffID says.
func (r *Ref) verified() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ls := range r.leases {
		if !ls.unpacked() && !ls.ofKin() {
			return false
		}
	}
	return r.local == nil
}

// Close gives the leases back. It may be called more than once.
func (r *Ref) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	var errs []error
	for _, ls := range r.leases {
		errs = append(errs, ls.close())
	}
	if r.fs != nil {
		errs = append(errs, r.fs.Close())
		r.fs = nil
	}
	return errors.Join(errs...)
}

// asRef returns a solver's result as what this package makes.
func asRef(res solver.Result) (*Ref, error) {
	if res == nil {
		return nil, nil
	}
	r, ok := res.(*Ref)
	if !ok {
		return nil, fmt.Errorf("input %T: not a result of this package: %w", res, errdefs.ErrInvalidArgument)
	}
	return r, nil
}
