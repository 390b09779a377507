package image

import (
	"context"

	"den/internal/oci"
)

// Usage is what images take in layers.
type Usage struct {
	// SharedBytes of an image's layers are in other images, too.
	SharedBytes map[oci.Digest]int64
	// LayersBytes is what all layers take, each counted once.
	LayersBytes int64
}

// Usage counts what the images that are here take, and share.
func (m *Images) Usage(ctx context.Context) (Usage, error) {
	u := Usage{SharedBytes: map[oci.Digest]int64{}}
	all, err := m.entries(ctx)
	if err != nil {
		return u, err
	}
	images := map[oci.Digest]*Image{}
	for _, e := range all {
		img := bestOf(e.Images, m.o.Platform)
		images[img.ConfigDigest] = img
	}
	users, sizes := map[oci.Digest]int{}, map[oci.Digest]int64{}
	for _, img := range images {
		if _, err := m.size(ctx, img, sizes); err != nil {
			return u, err
		}
		for d := range layerSet(img) {
			users[d]++
		}
	}
	for config, img := range images {
		u.SharedBytes[config] = 0
		for d := range layerSet(img) {
			if users[d] > 1 {
				u.SharedBytes[config] += sizes[d]
			}
		}
	}
	for d := range users {
		u.LayersBytes += sizes[d]
	}
	return u, nil
}

// layerSet is the set of an image's layers.
func layerSet(img *Image) map[oci.Digest]bool {
	set := map[oci.Digest]bool{}
	for _, l := range img.Layers {
		set[l.DiffID] = true
	}
	return set
}
