package image

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// Built is what a build or a container leaves, ready to be named.
type Built struct {
	// Names to give; none leaves the image untagged.
	Names []string
	// Images, one for each platform, made by Assemble, Rewrite or Blobs.
	Images []*Image
}

// Commit names images: configurations and diffIDs are recorded, no blob is
// made. Each layer is here as a tree, or known to be had from somewhere.
func (m *Images) Commit(ctx context.Context, b Built) (*Image, error) {
	if len(b.Images) == 0 {
		return nil, fmt.Errorf("commit image: no platform: %w", errdefs.ErrInvalidArgument)
	}
	names := []string{string(b.Images[0].ConfigDigest)}
	if len(b.Names) > 0 {
		names = nil
	}
	for _, name := range b.Names {
		ref, err := parseTag(name)
		if err != nil {
			return nil, err
		}
		names = append(names, ref.String())
	}
	images, err := m.measured(ctx, b.Images)
	if err != nil {
		return nil, fmt.Errorf("commit image: %w", err)
	}
	for _, name := range names {
		e := &entry{Target: images[0].Target, Images: images, name: name, tagged: time.Now()}
		if err := m.give(ctx, e); err != nil {
			return nil, fmt.Errorf("commit image: %w", err)
		}
	}
	out := *images[0]
	if len(b.Names) > 0 {
		out.Name = names[0]
	}
	return &out, nil
}

// measured copies images with the sizes of those layers that are trees here.
func (m *Images) measured(ctx context.Context, images []*Image) ([]*Image, error) {
	out := make([]*Image, len(images))
	for i, img := range images {
		c := *img
		c.Layers = append([]Layer(nil), img.Layers...)
		for n := range c.Layers {
			l := &c.Layers[n]
			if l.SizeBytes > 0 {
				continue
			}
			t, err := m.anyTree(ctx, l.DiffID)
			if errdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			l.SizeBytes = t.Meta().SizeBytes
			if err := t.Close(); err != nil {
				return nil, err
			}
		}
		out[i] = &c
	}
	return out, nil
}

// Tag gives an image that is here one more name.
func (m *Images) Tag(ctx context.Context, source, name string) error {
	ref, err := parseTag(name)
	if err != nil {
		return err
	}
	e, img, err := m.find(ctx, source)
	if err != nil {
		return err
	}
	tagged := &entry{Target: e.Target, Images: e.Images, name: ref.String(), tagged: time.Now()}
	if img != nil && len(e.Images) > 1 { // one platform's image, by its ID
		tagged.Target, tagged.Images = img.Manifest, []*Image{img}
	}
	return m.give(ctx, tagged)
}
