package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"den/internal/image"
	"den/internal/oci"
	"den/internal/store"
)

// Promoted is what became of the records of a store that is not trusted.
type Promoted struct {
	// Records, Layers and Blobs that were taken over or were here already.
	Records, Layers, Blobs int
	// Refused says, for each record or blob that is not what it claims, why;
	// Missing for those of which not all is there that they need.
	Refused, Missing []string
}

// A Promotion takes over what a store holds that is not trusted.
type Promotion struct {
	Store  *store.Store
	Images *image.Images
	Source *store.Source
	// Scopes whose records are taken, with the layers that they name. Whoever
	// wrote to the source could claim a scope for a record.
	Scopes []string
	// Blobs takes all blobs, which are worth nothing to a build by themselves
	// but save a download.
	Blobs bool
}

// Run verifies everything that it takes over. What is wrong, or cannot be
// verified, is refused and named; an error is of this store.
func (p Promotion) Run(ctx context.Context) (Promoted, error) {
	r := &promotion{Promotion: p, adopted: map[oci.Digest]adopted{}}
	defer r.close()
	if len(p.Scopes) > 0 {
		err := p.Source.Records(ctx, p.Scopes, func(key oci.Digest, rec store.Record) error {
			return r.refusing(ctx, fmt.Sprintf("record %s (%.80s)", key, rec.Op), func() error { return r.record(ctx, key, rec) })
		})
		if err != nil {
			return r.Promoted, fmt.Errorf("promote: %w", err)
		}
	}
	if p.Blobs {
		err := p.Source.Blobs(ctx, func(d oci.Digest) error {
			return r.refusing(ctx, fmt.Sprintf("blob %s", d), func() error { return r.blob(ctx, d) })
		})
		if err != nil {
			return r.Promoted, fmt.Errorf("promote: %w", err)
		}
	}
	return r.Promoted, nil
}

type promotion struct {
	Promotion
	Promoted
	adopted map[oci.Digest]adopted
}

// An adopted layer, leased until the end; or why it is none.
type adopted struct {
	layer image.Layer
	tree  *store.Layer
	err   error
}

func (r *promotion) close() {
	for _, a := range r.adopted {
		if a.tree != nil {
			_ = a.tree.Close() // a lease; what was written is published
		}
	}
}

// refusing notes why what was refused, unless this process or store is at fault.
func (r *promotion) refusing(ctx context.Context, what string, fn func() error) error {
	err := fn()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil || errdefs.IsResourceExhausted(err) || errdefs.IsFailedPrecondition(err) {
		return err
	}
	line := fmt.Sprintf("%s: %v", what, err)
	if _, wrong := errors.AsType[*oci.DigestError](err); !wrong && errdefs.IsNotFound(err) {
		r.Missing = append(r.Missing, line)
	} else {
		r.Refused = append(r.Refused, line)
	}
	return nil
}

func (r *promotion) blob(ctx context.Context, d oci.Digest) error {
	b, err := r.Source.Take(ctx, r.Store, d)
	if err != nil {
		return err
	}
	r.Promoted.Blobs++
	return b.Close()
}

func (r *promotion) record(ctx context.Context, key oci.Digest, rec store.Record) error {
	return r.take(ctx, key, rec, r.layer)
}

// take takes a record over once all its layers are here and leased, which layer sees to.
func (r *promotion) take(ctx context.Context, key oci.Digest, rec store.Record, layer func(context.Context, image.Layer) (adopted, error)) error {
	var data recordData
	if err := json.Unmarshal(rec.Data, &data); err != nil {
		return fmt.Errorf("malformed: %w", err)
	}
	out := store.Record{Scope: rec.Scope, Op: rec.Op, CostNanos: rec.CostNanos, Created: rec.Created}
	seen := map[oci.Digest]bool{}
	for _, stack := range data.Outputs {
		if len(stack) > maxRecordedLayers {
			return oci.ErrTooLarge
		}
		for i := range stack {
			a, err := layer(ctx, stack[i])
			if err != nil {
				return err
			}
			created := stack[i].Created
			stack[i] = a.layer
			stack[i].Created = created
			if !seen[a.layer.DiffID] {
				seen[a.layer.DiffID] = true
				out.Layers = append(out.Layers, a.layer.DiffID)
			}
		}
	}
	var err error
	if out.Data, err = json.Marshal(data); err != nil {
		return err
	}
	if _, err := r.Store.PutRecord(ctx, key, out, false); err != nil {
		return err
	}
	r.Promoted.Records++
	return nil
}

// layer adopts a layer once.
func (r *promotion) layer(ctx context.Context, l image.Layer) (adopted, error) {
	if err := oci.CheckDigest(l.DiffID); err != nil {
		return adopted{}, err
	}
	if a, known := r.adopted[l.DiffID]; known {
		return a, a.err
	}
	var a adopted
	a.layer, a.tree, a.err = r.Images.Adopt(ctx, r.Source, l)
	if a.err == nil {
		r.Promoted.Layers++
		if a.layer.Blob != nil {
			r.Promoted.Blobs++
		}
	}
	if _, wrong := errors.AsType[*oci.DigestError](a.err); a.err == nil || wrong || errdefs.IsNotFound(a.err) {
		r.adopted[l.DiffID] = a
	}
	return a, a.err
}
