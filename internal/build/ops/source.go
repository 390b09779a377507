package ops

import (
	"context"
	"errors"
	"iter"
	"time"

	"den/internal/image"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// build makes a layer of files, in layer order, and returns it as a Ref.
func (e *Env) build(ctx context.Context, files iter.Seq2[layer.File, error], vertex oci.Digest) (_ *Ref, err error) {
	d, err := e.Store.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	watch, err := d.Watch(ctx)
	if err != nil {
		return nil, err
	}
	applied, err := layer.Build(watch.Context(), d.FS(), files, e.buildOptions())
	if err := errors.Join(err, watch.Stop()); err != nil {
		return nil, err
	}
	return e.publish(ctx, nil, d, applied, vertex)
}

// publish turns a finished draft into the layer on top of below.
func (e *Env) publish(ctx context.Context, below *Ref, d *store.Draft, applied layer.Applied, vertex oci.Digest) (*Ref, error) {
	tree, err := d.Publish(ctx, store.LayerMeta{
		DiffID: applied.DiffID, SizeBytes: applied.SizeBytes, TreeBytes: applied.TreeBytes, Entries: applied.Entries,
	})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	top := image.Layer{DiffID: applied.DiffID, SizeBytes: applied.SizeBytes, Created: &now}
	return e.push(ctx, below, top, tree, vertex)
}

// madeAt is the time of files that an op makes itself: now, or the build's
// SOURCE_DATE_EPOCH if that is earlier.
func (e *Env) madeAt() time.Time {
	now := time.Now()
	if epoch := e.SourceDateEpoch; epoch != nil && epoch.Before(now) {
		return *epoch
	}
	return now
}
