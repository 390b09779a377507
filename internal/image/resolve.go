package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/store"
)

// Resolve finds the image that name stands for, with its configuration and
// list of layers. Nothing but manifest and configuration is fetched; what was
// fetched is remembered under the name, for all engines of the store.
func (m *Images) Resolve(ctx context.Context, name string, o ResolveOptions) (*Image, error) {
	var mismatch error
	if o.Mode != ResolvePull {
		img, err := m.local(ctx, name, o.Platform)
		if err == nil {
			return img, nil
		}
		if !errdefs.IsNotFound(err) || o.Mode == ResolveLocal {
			return nil, err
		}
		if isPlatformError(err) {
			mismatch = err
		}
	}
	ref, err := oci.ParseReference(name)
	if err != nil {
		return nil, err
	}
	e, held, err := m.fetch(ctx, ref, one(m.wish(o.Platform)))
	if err != nil {
		if mismatch != nil {
			return nil, fmt.Errorf("%w; %w", mismatch, err)
		}
		return nil, err
	}
	defer held.Close()
	if err := m.remember(ctx, e); err != nil {
		return nil, err
	}
	return e.Images[0], nil
}

// wish is the platform to ask a registry for.
func (m *Images) wish(p *oci.Platform) oci.Platform {
	if p == nil {
		return m.o.Platform
	}
	return normalized(*p)
}

// pick chooses manifests from an index. Each choice is a list to try in order.
type pick func(*oci.Index) ([][]oci.Descriptor, error)

// one picks the best manifest for a platform.
func one(p oci.Platform) pick {
	return func(x *oci.Index) ([][]oci.Descriptor, error) {
		list, err := candidates(x, p)
		return [][]oci.Descriptor{list}, err
	}
}

// every picks all manifests.
func every(x *oci.Index) ([][]oci.Descriptor, error) {
	var all [][]oci.Descriptor
	for _, d := range images(x) {
		all = append(all, []oci.Descriptor{d})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("index lists no image: %w", errdefs.ErrNotFound)
	}
	return all, nil
}

// fetch asks ref's registry what it stands for, without asking again for what
// is in the store. The leases are on manifests and configurations.
func (m *Images) fetch(ctx context.Context, ref oci.Reference, choose pick) (*entry, leases, error) {
	var held leases
	target, raw, err := m.target(ctx, ref, &held)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("resolve %s: %w", ref.Familiar(), err), held.Close())
	}
	if ref.Digest != "" {
		ref = ref.WithDigest(ref.Digest) // what a tag beside a digest stands for is not known by it
	}
	e := &entry{Target: &target, name: ref.String(), pulled: true, tagged: time.Now()}
	if err := m.fill(ctx, e, ref, raw, choose, &held); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("resolve %s: %w", ref.Familiar(), err), held.Close())
	}
	return e, held, nil
}

// fill reads the images that the entry's target stands for.
func (m *Images) fill(ctx context.Context, e *entry, ref oci.Reference, raw []byte, choose pick, held *leases) error {
	if !oci.IsIndex(e.Target.MediaType) {
		img, err := m.image(ctx, ref, *e.Target, raw, held)
		if err != nil {
			return err
		}
		e.add(img)
		return nil
	}
	index, err := oci.ParseIndex(raw, e.Target.MediaType)
	if err != nil {
		return err
	}
	choices, err := choose(index)
	if err != nil {
		return err
	}
	for _, list := range choices {
		img, err := m.first(ctx, ref, list, held)
		if err != nil {
			return err
		}
		e.add(img)
	}
	return nil
}

func (e *entry) add(img *Image) {
	img.Target = e.Target
	if !untagged(e.name) {
		img.Name = e.name
	}
	e.Images = append(e.Images, img)
}

// first returns the image of the first manifest that there is.
func (m *Images) first(ctx context.Context, ref oci.Reference, list []oci.Descriptor, held *leases) (*Image, error) {
	var errs []error
	for _, d := range list {
		desc, raw, err := m.manifest(ctx, ref, d.Digest, held)
		if err == nil {
			var img *Image
			if img, err = m.image(ctx, ref, desc, raw, held); err == nil {
				if d.Platform != nil && img.Platform.Architecture == "" {
					img.Platform = normalized(*d.Platform)
				}
				return img, nil
			}
		}
		errs = append(errs, err)
		if !errdefs.IsNotFound(err) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// target returns the manifest or index that ref stands for.
func (m *Images) target(ctx context.Context, ref oci.Reference, held *leases) (oci.Descriptor, []byte, error) {
	if ref.Digest != "" {
		return m.manifest(ctx, ref, ref.Digest, held)
	}
	if err := m.online(); err != nil {
		return oci.Descriptor{}, nil, err
	}
	// A HEAD is not counted by registries that count pulls; it only pays if
	// something is known that it can confirm.
	if _, err := m.shared(ctx, ref.String()); err == nil {
		desc, err := m.reg.Resolve(ctx, ref.String())
		if err != nil {
			return oci.Descriptor{}, nil, err
		}
		return m.manifest(ctx, ref, desc.Digest, held)
	}
	desc, raw, err := m.reg.Manifest(ctx, ref.String())
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	return m.keepDocument(ctx, desc, raw, held)
}

func (m *Images) online() error {
	if m.reg == nil {
		return fmt.Errorf("not here, and no registry may be asked: %w", errdefs.ErrNotFound)
	}
	return nil
}

// manifest returns a manifest or index by digest, from the store or ref's
// repository.
func (m *Images) manifest(ctx context.Context, ref oci.Reference, d oci.Digest, held *leases) (oci.Descriptor, []byte, error) {
	if raw, err := m.read(ctx, d, oci.MaxManifestBytes, held); err == nil {
		return describe(raw, "", d)
	}
	if err := m.online(); err != nil {
		return oci.Descriptor{}, nil, err
	}
	desc, raw, err := m.reg.Manifest(ctx, ref.WithDigest(d).String())
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	if desc.Digest != d {
		return oci.Descriptor{}, nil, &oci.DigestError{Want: d, Got: desc.Digest}
	}
	return m.keepDocument(ctx, desc, raw, held)
}

// keepDocument puts a manifest that was fetched into the store.
func (m *Images) keepDocument(ctx context.Context, desc oci.Descriptor, raw []byte, held *leases) (oci.Descriptor, []byte, error) {
	desc, raw, err := describe(raw, desc.MediaType, desc.Digest)
	if err != nil {
		return desc, nil, err
	}
	return desc, raw, m.keep(ctx, raw, held)
}

// describe is the descriptor of a manifest's or index's bytes.
func describe(raw []byte, declared string, d oci.Digest) (oci.Descriptor, []byte, error) {
	mediaType, err := oci.DetectMediaType(raw, declared)
	if err != nil {
		return oci.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", d, err)
	}
	return oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}, raw, nil
}

// image reads the image of a manifest: its configuration and layers.
func (m *Images) image(ctx context.Context, ref oci.Reference, desc oci.Descriptor, raw []byte, held *leases) (*Image, error) {
	manifest, err := parseImageManifest(raw, desc.MediaType)
	if err != nil {
		return nil, err
	}
	config, err := m.config(ctx, ref, manifest.Config, held)
	if err != nil {
		return nil, err
	}
	return imageOf(desc, manifest, config, ref.Name())
}

// imageOf puts together what belongs together.
func imageOf(desc oci.Descriptor, manifest *oci.Manifest, config []byte, repo string) (*Image, error) {
	c, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	layers, err := layersOf(manifest, c, repo)
	if err != nil {
		return nil, err
	}
	img, err := newImage(config, layers)
	if err != nil {
		return nil, err
	}
	img.Manifest = &oci.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	img.Annotations = manifest.Annotations
	return img, nil
}

// config returns an image's configuration, from the store or ref's repository.
func (m *Images) config(ctx context.Context, ref oci.Reference, d oci.Descriptor, held *leases) ([]byte, error) {
	if raw, err := m.read(ctx, d.Digest, oci.MaxConfigBytes, held); err == nil {
		return raw, nil
	}
	if err := m.online(); err != nil {
		return nil, err
	}
	if d.Size > oci.MaxConfigBytes {
		return nil, fmt.Errorf("configuration %s of %d bytes: %w", d.Digest, d.Size, oci.ErrTooLarge)
	}
	// Of several processes one asks the registry.
	b, err := m.st.Ingest(ctx, store.Ingest{
		Digest: d.Digest, SizeBytes: d.Size,
		Fetch: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			return m.reg.Blob(ctx, ref.Name(), d, offset)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	held.add(b)
	raw, err := io.ReadAll(b.Reader())
	if err == nil && digest.FromBytes(raw) == d.Digest {
		return raw, nil
	}
	// A crash tore what is in the store: do without.
	if raw, err = m.reg.SmallBlob(ctx, ref.Name(), d, oci.MaxConfigBytes); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	return raw, m.keep(ctx, raw, held)
}

// read returns a small blob of the store and keeps it leased.
func (m *Images) read(ctx context.Context, d oci.Digest, limit int64, held *leases) ([]byte, error) {
	b, err := m.st.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	held.add(b)
	if b.Size() > limit {
		return nil, fmt.Errorf("blob %s of %d bytes: %w", d, b.Size(), oci.ErrTooLarge)
	}
	raw, err := io.ReadAll(b.Reader())
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(raw) != d { // torn by a crash: as good as not there
		return nil, fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	return raw, nil
}

// keep puts a small blob into the store.
func (m *Images) keep(ctx context.Context, raw []byte, held *leases) error {
	b, err := m.st.PutBlob(ctx, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	held.add(b)
	return nil
}

// remember writes a pulled entry. Platforms that are known of the same target
// stay known.
func (m *Images) remember(ctx context.Context, e *entry) error {
	return m.locked(ctx, "pulled "+e.name, func() error {
		old, err := m.shared(ctx, e.name)
		if err == nil && old.Target != nil && old.Target.Digest == e.Target.Digest {
			for _, img := range old.Images {
				if !e.has(img.ConfigDigest) {
					e.Images = append(e.Images, img)
				}
			}
			if len(old.Images) == len(e.Images) && (sizesKnown(old) || !sizesKnown(e)) {
				return nil // nothing new to say
			}
		}
		return m.put(ctx, e)
	})
}

func sizesKnown(e *entry) bool {
	for _, img := range e.Images {
		for _, l := range img.Layers {
			if l.SizeBytes == 0 {
				return false
			}
		}
	}
	return true
}

// domainOf is the registry of a repository.
func domainOf(repo string) string {
	host, _, _ := strings.Cut(repo, "/")
	return host
}
