package build

import (
	"context"
	"errors"

	"den/internal/build/ops"
	"den/internal/store"
)

// Promoted is what became of a store that is not trusted.
type Promoted = ops.Promoted

// PromoteOptions say what to take over.
type PromoteOptions struct {
	// From is the directory of the store that is not trusted.
	From string
	// Scopes whose build-cache records are trusted, as people write them.
	Scopes []string
	// Blobs takes every blob, too.
	Blobs bool
}

// Promote takes results over from a store that is not trusted, verified: blobs
// are hashed again, layers unpacked again, and records taken only from the
// scopes named.
func (b *Builder) Promote(ctx context.Context, o PromoteOptions) (p Promoted, err error) {
	scopes, err := parseScopes(o.Scopes)
	if err != nil {
		return p, err
	}
	src, err := store.OpenSource(o.From)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return ops.Promotion{Store: b.o.Store, Images: b.o.Images, Source: src, Scopes: scopes, Blobs: o.Blobs}.Run(ctx)
}
