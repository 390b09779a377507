package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// CreateList makes a name stand for images that AddToList will add, one for each
// platform; it leaves the network by Push as an index. A name that is taken is
// errdefs.ErrAlreadyExists.
func (m *Images) CreateList(ctx context.Context, name string) error {
	ref, err := parseTag(name)
	if err != nil {
		return err
	}
	return m.locked(ctx, ref.String(), func() error {
		if _, err := m.own(ctx, ref.String()); err == nil {
			return fmt.Errorf("list %s: the name is taken: %w", ref.Familiar(), errdefs.ErrAlreadyExists)
		} else if !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
			return err
		}
		return m.put(ctx, &entry{Images: []*Image{}, name: ref.String(), tagged: time.Now()})
	})
}

// AddToList adds images to what name stands for. One of a platform that is there
// already takes its place.
func (m *Images) AddToList(ctx context.Context, name string, images []*Image) error {
	ref, err := parseTag(name)
	if err != nil {
		return err
	}
	return m.locked(ctx, ref.String(), func() error {
		e, err := m.own(ctx, ref.String())
		if err != nil {
			return fmt.Errorf("list %s: %w", ref.Familiar(), err)
		}
		list := slices.Clone(e.Images)
		for _, img := range images {
			list = slices.DeleteFunc(list, func(old *Image) bool { return samePlatform(old.Platform, img.Platform) })
			list = append(list, img)
		}
		e.Images, e.Target, e.tagged = list, nil, time.Now()
		return m.put(ctx, e)
	})
}

// Members are the images that a name, or an ID, stands for here: one for each
// platform.
func (m *Images) Members(ctx context.Context, name string) ([]*Image, error) {
	e, img, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if img != nil && !untagged(e.name) {
		return []*Image{img}, nil
	}
	return e.Images, nil
}

// Raw is the manifest or index that an image leaves with.
func (b *Blobs) Raw() []byte { return b.documents[b.Target.Digest].raw }
