package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/oci"
	"den/internal/progress"
)

// PullOptions refine Pull.
type PullOptions struct {
	// Platform to pull; nil is the default platform.
	Platform *oci.Platform
	// AllPlatforms pulls every image of an index.
	AllPlatforms bool
	// Sink is told about transfers as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

// Pulled is what Pull did.
type Pulled struct {
	// Image is the one for the platform that was asked for.
	*Image
	// Digest is what the name stands for in its registry.
	Digest oci.Digest
	// UpToDate says that all of it was here before.
	UpToDate bool
}

// Status is docker pull's last line about it.
func (p *Pulled) Status() string {
	if p.UpToDate {
		return "Image is up to date for " + familiar(p.Name)
	}
	return "Downloaded newer image for " + familiar(p.Name)
}

// Pull brings the image that name stands for in its registry into the store,
// and its layers as trees. An interrupted pull is taken up where it was.
func (m *Images) Pull(ctx context.Context, name string, o PullOptions) (*Pulled, error) {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return nil, err
	}
	choose := one(m.wish(o.Platform))
	if o.AllPlatforms {
		choose = every
	}
	old, err := m.named(ctx, ref.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	e, held, err := m.fetch(ctx, ref, choose)
	if err != nil {
		return nil, err
	}
	defer func() { held.Close() }() // grows below
	img, err := e.choose(nil, m.wish(o.Platform))
	if err != nil {
		return nil, err
	}
	fresh, err := m.fetchLayers(ctx, e, img, o, &held)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref.Familiar(), err)
	}
	if err := m.remember(ctx, e); err != nil {
		return nil, err
	}
	if err := m.unshadow(ctx, e); err != nil {
		return nil, err
	}
	p := &Pulled{Image: img, Digest: e.Target.Digest}
	p.UpToDate = fresh == 0 && old != nil && old.Target != nil && old.Target.Digest == e.Target.Digest
	return p, nil
}

// fetchLayers brings the layers of the entry's images here: as trees for img,
// where trees can be made, as blobs for other platforms. It counts those that were not here.
func (m *Images) fetchLayers(ctx context.Context, e *entry, img *Image, o PullOptions, held *leases) (fresh int, err error) {
	if m.o.NoTrees != nil {
		fresh, err = m.fetchBlobs(ctx, img, o, held)
	} else {
		fresh, err = m.fetchTrees(ctx, img, o, held)
	}
	if err != nil {
		return 0, err
	}
	for _, other := range e.Images {
		if other == img {
			continue
		}
		n, err := m.fetchBlobs(ctx, other, o, held)
		if err != nil {
			return 0, err
		}
		fresh += n
	}
	return fresh, nil
}

// fetchTrees brings the trees of an image here.
func (m *Images) fetchTrees(ctx context.Context, img *Image, o PullOptions, held *leases) (int, error) {
	fresh := 0
	for _, l := range img.Layers {
		t, err := m.st.Layer(ctx, l.DiffID)
		if errdefs.IsNotFound(err) {
			fresh++
			continue
		}
		if err != nil {
			return 0, err
		}
		newStatus(o.Sink, o.Vertex, nameOf(l)).done("Already exists")
		if err := t.Close(); err != nil {
			return 0, err
		}
	}
	trees, err := m.Trees(ctx, img.Layers, TreeOptions{Sink: o.Sink, Vertex: o.Vertex})
	if err != nil {
		return 0, err
	}
	for i, t := range trees {
		held.add(t)
		img.Layers[i].SizeBytes = t.Meta().SizeBytes
	}
	return fresh, m.checkHere(ctx, img)
}

// fetchBlobs brings the blobs of an image here that is not to have trees.
func (m *Images) fetchBlobs(ctx context.Context, img *Image, o PullOptions, held *leases) (int, error) {
	fresh := 0
	g, gctx := errgroup.WithContext(ctx)
	kept := make([]leases, len(img.Layers))
	for i, l := range img.Layers {
		if b, err := m.st.Blob(ctx, l.Blob.Digest); err == nil {
			held.add(b)
			if err := m.check(ctx, b, l.DiffID); err != nil {
				return 0, errors.Join(err, g.Wait())
			}
			continue
		}
		fresh++
		g.Go(func() error {
			s := newStatus(o.Sink, o.Vertex, l.Blob.Digest)
			s.phase("Waiting", 0)
			b, err := m.download(gctx, source{desc: *l.Blob, repo: l.Repo, diffID: l.DiffID}, s)
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			kept[i].add(b)
			return nil
		})
	}
	err := g.Wait()
	for _, k := range kept {
		*held = append(*held, k...)
	}
	return fresh, err
}

// unshadow gives up this engine's own meaning of a name that was just pulled.
func (m *Images) unshadow(ctx context.Context, e *entry) error {
	return m.locked(ctx, e.name, func() error {
		if _, err := m.st.Ref(ctx, e.name); errdefs.IsNotFound(err) {
			return nil
		}
		if err := m.strand(ctx, e.name, e); err != nil {
			return err
		}
		err := m.st.DeleteRef(ctx, e.name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
}
