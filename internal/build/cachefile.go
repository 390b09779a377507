package build

import (
	"context"
	"io"

	"den/internal/build/ops"
	"den/internal/store"
)

// Exported and Imported say what a file of build cache took and gave.
type (
	Exported = ops.Exported
	Imported = ops.Imported
)

// ExportOptions say what to write to a file.
type ExportOptions struct {
	// Scopes whose records are written, as people write them; none is all.
	Scopes []string
	// Cache is for records with their layers, Mounts for cache mounts.
	Cache, Mounts bool
}

// ExportCache writes build cache and cache mounts to w, for another store.
func (b *Builder) ExportCache(ctx context.Context, w io.Writer, o ExportOptions) (Exported, error) {
	scopes, err := parseScopes(o.Scopes)
	if err != nil {
		return Exported{}, err
	}
	return ops.Exporter{Store: b.o.Store, Images: b.o.Images, Scopes: scopes, Cache: o.Cache, Mounts: o.Mounts, Recorded: b.o.Recorded}.Write(ctx, w)
}

// ImportOptions say what of a file is believed.
type ImportOptions struct {
	// Scopes whose records are trusted, as people write them.
	Scopes []string
	// Mounts takes cache mounts, too.
	Mounts bool
}

// ImportCache takes over what ExportCache wrote, layers verified.
func (b *Builder) ImportCache(ctx context.Context, r io.Reader, o ImportOptions) (Imported, error) {
	scopes, err := parseScopes(o.Scopes)
	if err != nil {
		return Imported{}, err
	}
	return ops.Importer{Store: b.o.Store, Images: b.o.Images, Scopes: scopes, Mounts: o.Mounts, InUserns: b.o.InUserns, Recorded: b.o.Recorded}.Read(ctx, r)
}

func parseScopes(texts []string) ([]string, error) {
	scopes := make([]string, len(texts))
	for i, text := range texts {
		var err error
		if scopes[i], err = store.ParseScope(text); err != nil {
			return nil, err
		}
	}
	return scopes, nil
}
