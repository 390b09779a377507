package image

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Archived is an image in an archive, ready to leave. Close it.
type Archived struct {
	*Blobs
	// Name is the canonical one that the archive gives it, or empty.
	Name string
}

// OpenArchive reads images as Load does, and gives them no name here: for what is
// only passed on.
func (m *Images) OpenArchive(ctx context.Context, r io.Reader) ([]*Archived, error) {
	a := &archive{m: m, files: map[string]file{}}
	defer a.held.Close()
	if err := a.read(ctx, r); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	found, err := a.images(ctx)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	var out []*Archived
	for _, e := range found {
		b, err := m.archived(ctx, e)
		if err != nil {
			for _, o := range out {
				err = errors.Join(err, o.Close())
			}
			return nil, fmt.Errorf("archive: %w", err)
		}
		out = append(out, &Archived{b, e.name})
	}
	return out, nil
}

func (m *Images) archived(ctx context.Context, e *entry) (*Blobs, error) {
	for _, img := range e.Images {
		img.Target = e.Target
		if err := m.checkHere(ctx, img); err != nil {
			return nil, err
		}
	}
	return m.Blobs(ctx, e.Images, Format{})
}
