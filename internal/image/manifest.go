package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/oci"
)

// writeManifest writes the manifest as BuildKit does, byte for byte.
func writeManifest(img *Image, f Format) (document, error) {
	config := oci.MediaTypeConfig
	if f.DockerTypes {
		config = oci.MediaTypeDockerConfig
	}
	manifest := oci.Manifest{
		MediaType: f.manifestType(),
		Config:    oci.Descriptor{MediaType: config, Digest: img.ConfigDigest, Size: int64(len(img.Config))},
	}
	manifest.SchemaVersion = 2
	if !f.DockerTypes {
		manifest.Annotations = img.Annotations
	}
	for _, l := range img.Layers {
		compression, ok := oci.Compression(l.Blob.MediaType)
		if !ok {
			return document{}, fmt.Errorf("layer %s: media type %q is not a layer's: %w", l.DiffID, l.Blob.MediaType, errdefs.ErrInvalidArgument)
		}
		mediaType, err := oci.LayerMediaType(manifest.MediaType, compression)
		if err != nil {
			return document{}, err
		}
		d := oci.Descriptor{MediaType: mediaType, Digest: l.Blob.Digest, Size: l.Blob.Size}
		if !f.DockerTypes {
			d.Annotations = l.Blob.Annotations
		}
		manifest.Layers = append(manifest.Layers, d)
	}
	return writeDocument(manifest.MediaType, manifest)
}

func writeDocument(mediaType string, v any) (document, error) {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return document{}, err
	}
	return document{oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw}, nil
}

// addTarget makes the index of several images, or takes the only manifest. An
// index that was pulled is kept if all that it lists goes along.
func (m *Images) addTarget(ctx context.Context, b *Blobs, f Format) error {
	if raw, target, ok := m.pulledIndex(ctx, b); ok {
		b.Target, b.index = target, true
		b.documents[target.Digest] = document{target, raw}
	} else if len(b.Images) == 1 && !f.Index && len(f.Annotations)+len(f.DescriptorAnnotations) == 0 {
		b.Target = *b.Images[0].Manifest
	} else if err := m.writeIndex(ctx, b, f); err != nil {
		return err
	}
	for _, img := range b.Images {
		img.Target = &b.Target
	}
	return nil
}

func (m *Images) writeIndex(ctx context.Context, b *Blobs, f Format) error {
	index := oci.Index{MediaType: ocispec.MediaTypeImageIndex, Annotations: f.Annotations}
	index.SchemaVersion = 2
	if f.DockerTypes {
		index.MediaType, index.Annotations = oci.MediaTypeDockerIndex, nil
	}
	for _, img := range b.Images {
		d := *img.Manifest
		p := img.Platform
		d.Platform = &p
		index.Manifests = append(index.Manifests, d)
	}
	doc, err := writeDocument(index.MediaType, index)
	if err != nil {
		return err
	}
	doc.desc.Annotations = f.DescriptorAnnotations
	b.Target, b.index = doc.desc, true
	b.documents[doc.desc.Digest] = doc
	return m.keep(ctx, doc.raw, &b.held)
}

// pulledIndex returns the index that all images were pulled by, if they are
// all that it lists.
func (m *Images) pulledIndex(ctx context.Context, b *Blobs) ([]byte, oci.Descriptor, bool) {
	target := b.Images[0].Target
	if target == nil || !oci.IsIndex(target.MediaType) {
		return nil, oci.Descriptor{}, false
	}
	raw, err := m.read(ctx, target.Digest, oci.MaxManifestBytes, &b.held)
	if err != nil {
		return nil, oci.Descriptor{}, false
	}
	index, err := oci.ParseIndex(raw, target.MediaType)
	if err != nil {
		return nil, oci.Descriptor{}, false
	}
	for _, d := range index.Manifests {
		if _, ok := b.documents[d.Digest]; !ok {
			return nil, oci.Descriptor{}, false
		}
	}
	return raw, *target, true
}
