package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// find returns the entry that a person means by name: a name, a name with a
// digest, or an image ID or the beginning of one. For an ID the second result
// is the image that has it.
func (m *Images) find(ctx context.Context, name string) (*entry, *Image, error) {
	if strings.HasPrefix(name, "sha256:") || len(name) == 64 && anchoredID.MatchString(name) {
		return m.byID(ctx, name)
	}
	ref, err := oci.ParseReference(name)
	if err != nil {
		return nil, nil, err
	}
	e, err := m.byName(ctx, ref)
	if errdefs.IsNotFound(err) && anchoredID.MatchString(name) {
		if e, img, idErr := m.byID(ctx, name); !errdefs.IsNotFound(idErr) {
			return e, img, idErr
		}
	}
	return e, nil, err
}

// byName returns what ref stands for in this engine, else in the names that
// all engines share.
func (m *Images) byName(ctx context.Context, ref oci.Reference) (*entry, error) {
	notFound := fmt.Errorf("image %s is not here: %w", ref.Familiar(), errdefs.ErrNotFound)
	if ref.Digest == "" {
		e, err := m.named(ctx, ref.String())
		if errdefs.IsNotFound(err) {
			return nil, notFound
		}
		return e, err
	}
	if ref.Tag != "" {
		tag := ref
		tag.Digest = ""
		if e, err := m.named(ctx, tag.String()); err == nil && e.pinned(ref.Digest) {
			return e.only(ref.Digest), nil
		}
	}
	if e, err := m.named(ctx, ref.WithDigest(ref.Digest).String()); err == nil {
		return e, nil
	}
	all, err := m.entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if r, err := oci.ParseName(e.name); err == nil && r.Name() == ref.Name() && e.pinned(ref.Digest) {
			return e.only(ref.Digest), nil
		}
	}
	return nil, notFound
}

// named looks name up as it is.
func (m *Images) named(ctx context.Context, name string) (*entry, error) {
	e, err := m.own(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		e, err = m.shared(ctx, name)
	}
	if errdefs.IsDataLoss(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return e, err
}

// pinned reports whether a registry knows the entry, or a manifest of it, by
// digest.
func (e *entry) pinned(d oci.Digest) bool {
	return e.Target != nil && e.Target.Digest == d ||
		slices.ContainsFunc(e.Images, func(i *Image) bool { return i.Manifest != nil && i.Manifest.Digest == d })
}

// only is the part of the entry that a digest names: all of it, or the image
// of one manifest.
func (e *entry) only(d oci.Digest) *entry {
	if e.Target != nil && e.Target.Digest == d {
		return e
	}
	for _, img := range e.Images {
		if img.Manifest != nil && img.Manifest.Digest == d {
			part := *e
			part.Target, part.Images = img.Manifest, []*Image{img}
			return &part
		}
	}
	return e
}

// byID returns the image whose configuration digest begins with id; a full
// digest may also be that of a manifest or index.
func (m *Images) byID(ctx context.Context, id string) (*entry, *Image, error) {
	hex := strings.TrimPrefix(id, "sha256:")
	all, err := m.entries(ctx)
	if err != nil {
		return nil, nil, err
	}
	var found *entry
	var image *Image
	for _, e := range all {
		for _, img := range e.Images {
			if !strings.HasPrefix(img.ConfigDigest.Encoded(), hex) &&
				!(len(hex) == 64 && e.pinned(oci.Digest("sha256:"+hex))) {
				continue
			}
			if image != nil && image.ConfigDigest != img.ConfigDigest && len(hex) < 64 {
				return nil, nil, fmt.Errorf("image ID %s: ambiguous, at least %s and %s begin with it: %w",
					id, shortID(image.ConfigDigest), shortID(img.ConfigDigest), errdefs.ErrInvalidArgument)
			}
			if image == nil {
				found, image = e, img
			}
		}
	}
	if image == nil {
		return nil, nil, fmt.Errorf("image %s is not here: %w", id, errdefs.ErrNotFound)
	}
	return found, image, nil
}

// local resolves name to an image that is known here.
func (m *Images) local(ctx context.Context, name string, p *oci.Platform) (*Image, error) {
	e, img, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if img != nil {
		return img, nil
	}
	return e.choose(p, m.o.Platform)
}
