package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
)

// Format says what blobs and manifests look like. The zero value is gzip and
// OCI media types.
type Format struct {
	// Compression of layers: "gzip", "zstd" or "uncompressed"; empty is gzip.
	Compression string
	// Level of the compression; 0 is its default.
	Level int
	// Force compresses again what was pulled with another compression.
	Force bool
	// DockerTypes uses the media types of the Docker image manifest.
	DockerTypes bool
	// Index makes an index also around a single image.
	Index bool
	// Annotations of the index, DescriptorAnnotations of its descriptor. Either
	// makes an index also around a single image.
	Annotations, DescriptorAnnotations map[string]string

	// Sink is told about compression as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

func (f Format) manifestType() string {
	if f.DockerTypes {
		return oci.MediaTypeDockerManifest
	}
	return oci.MediaTypeManifest
}

func (f Format) compression() string {
	if f.Compression == "" {
		return "gzip"
	}
	return f.Compression
}

func (f Format) codec() layer.Compression {
	if c := f.compression(); c != "uncompressed" {
		return layer.Compression(c)
	}
	return layer.Uncompressed
}

func (f Format) level() int {
	if f.Level == 0 {
		return layer.DefaultLevel
	}
	return f.Level
}

// Blobs is an image that is ready to leave: its manifest, or its manifests and
// their index, and where the bytes of all they name come from. It holds
// leases until closed.
type Blobs struct {
	// Target is what a name of the image stands for: the manifest, or the
	// index of several platforms.
	Target oci.Descriptor
	// Images are the images it was made of, with the blobs and manifests that
	// they have now.
	Images []*Image

	documents map[oci.Digest]document // manifests, configurations, index
	index     bool
	sources   map[oci.Digest]source // layers
	held      leases
}

type document struct {
	desc oci.Descriptor
	raw  []byte
}

// Close gives up the leases.
func (b *Blobs) Close() error { return b.held.Close() }

// Blobs makes what an image needs to leave: a blob for each layer, once for
// each compression, and the manifest, or an index if there are several
// images. What was pulled keeps its bytes, which are not fetched before they
// are needed.
func (m *Images) Blobs(ctx context.Context, images []*Image, f Format) (*Blobs, error) {
	if len(images) == 0 {
		return nil, fmt.Errorf("export image: no platform to export: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := oci.LayerMediaType(f.manifestType(), f.compression()); err != nil {
		return nil, err
	}
	b := &Blobs{
		Images:    make([]*Image, len(images)),
		documents: map[oci.Digest]document{},
		sources:   map[oci.Digest]source{},
	}
	for i, img := range images {
		if err := m.addImage(ctx, b, i, img, f); err != nil {
			return nil, errors.Join(fmt.Errorf("export image %s: %w", img, err), b.Close())
		}
	}
	if err := m.addTarget(ctx, b, f); err != nil {
		return nil, errors.Join(fmt.Errorf("export image %s: %w", images[0], err), b.Close())
	}
	return b, nil
}

// addImage makes the blobs and the manifest of one platform.
func (m *Images) addImage(ctx context.Context, b *Blobs, i int, img *Image, f Format) error {
	out := *img
	out.Layers = make([]Layer, len(img.Layers))
	sources, err := m.layerBlobs(ctx, img, f, &b.held)
	if err != nil {
		return err
	}
	for n, l := range img.Layers {
		src := sources[n]
		b.sources[src.desc.Digest] = src
		if l.Blob == nil || l.Blob.Digest != src.desc.Digest {
			l.Repo = ""
		}
		l.Blob = &src.desc
		out.Layers[n] = l
	}
	b.Images[i] = &out
	if raw, ok := m.asPulled(ctx, img, &out, &b.held); ok {
		b.documents[out.Manifest.Digest] = document{*out.Manifest, raw}
		b.documents[out.ConfigDigest] = document{configDescriptor(raw, &out), out.Config}
		return nil
	}
	manifest, err := writeManifest(&out, f)
	if err != nil {
		return err
	}
	manifest.desc.Annotations = img.DescriptorAnnotations
	out.Manifest = &manifest.desc
	b.documents[manifest.desc.Digest] = manifest
	config := document{raw: out.Config}
	config.desc = oci.Descriptor{MediaType: oci.MediaTypeConfig, Digest: out.ConfigDigest, Size: int64(len(out.Config))}
	if f.DockerTypes {
		config.desc.MediaType = oci.MediaTypeDockerConfig
	}
	b.documents[out.ConfigDigest] = config
	if err := m.keep(ctx, manifest.raw, &b.held); err != nil {
		return err
	}
	return m.keep(ctx, out.Config, &b.held)
}

// asPulled returns the manifest that the image was pulled or loaded with, if
// its layers are still those blobs.
func (m *Images) asPulled(ctx context.Context, img, out *Image, held *leases) ([]byte, bool) {
	if img.Manifest == nil {
		return nil, false
	}
	raw, err := m.read(ctx, img.Manifest.Digest, oci.MaxManifestBytes, held)
	if err != nil {
		return nil, false
	}
	manifest, err := oci.ParseManifest(raw, img.Manifest.MediaType)
	if err != nil || len(manifest.Layers) != len(out.Layers) || manifest.Config.Digest != img.ConfigDigest {
		return nil, false
	}
	for i, l := range manifest.Layers {
		if l.Digest != out.Layers[i].Blob.Digest {
			return nil, false
		}
	}
	return raw, true
}

// configDescriptor is the configuration's descriptor as its manifest has it.
func configDescriptor(manifest []byte, img *Image) oci.Descriptor {
	d := oci.Descriptor{MediaType: oci.MediaTypeConfig, Digest: img.ConfigDigest, Size: int64(len(img.Config))}
	if m, err := oci.ParseManifest(manifest, img.Manifest.MediaType); err == nil && m.Config.MediaType != "" {
		d.MediaType = m.Config.MediaType
	}
	return d
}

// layerBlobs finds or makes the blob of each layer, several at a time.
func (m *Images) layerBlobs(ctx context.Context, img *Image, f Format, held *leases) ([]source, error) {
	sources := make([]source, len(img.Layers))
	kept := make([]leases, len(img.Layers))
	g, gctx := errgroup.WithContext(ctx)
	for i, l := range img.Layers {
		g.Go(func() (err error) {
			sources[i], err = m.layerBlob(gctx, l, f, img.Manifest != nil, &kept[i])
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			return nil
		})
	}
	err := g.Wait()
	for _, k := range kept {
		*held = append(*held, k...)
	}
	return sources, err
}

// layerBlob finds or makes the blob of one layer. A plain tar that no
// manifest asks for, left by docker load, is only what a blob is made of.
func (m *Images) layerBlob(ctx context.Context, l Layer, f Format, hasManifest bool, held *leases) (source, error) {
	if l.Blob != nil {
		have, known := oci.Compression(l.Blob.MediaType)
		if have != f.compression() && (f.Force || have == "uncompressed" && !hasManifest) {
			known = false
		}
		if known {
			if b, err := m.st.Blob(ctx, l.Blob.Digest); err == nil {
				held.add(b)
				if b.Size() == l.Blob.Size {
					return source{desc: *l.Blob, repo: l.Repo, diffID: l.DiffID, here: true}, nil
				}
			}
			if l.Repo != "" && m.reg != nil {
				return source{desc: *l.Blob, repo: l.Repo, diffID: l.DiffID}, nil
			}
		}
	}
	b, desc, err := m.makeBlob(ctx, l, f)
	if err != nil {
		return source{}, err
	}
	held.add(b)
	return source{desc: desc, diffID: l.DiffID, here: true}, nil
}

// gather makes sure that the bytes of all layers are in the store.
func (m *Images) gather(ctx context.Context, b *Blobs, sink progress.Sink, vertex oci.Digest) error {
	g, gctx := errgroup.WithContext(ctx)
	kept := make(chan io.Closer, len(b.sources))
	for _, src := range b.sources {
		if src.here {
			continue
		}
		g.Go(func() error {
			s := newStatus(sink, vertex, src.desc.Digest)
			blob, err := m.download(gctx, src, s)
			if err == nil {
				kept <- blob
			}
			return err
		})
	}
	err := g.Wait()
	close(kept)
	for c := range kept {
		b.held.add(c)
	}
	if err != nil {
		return err
	}
	for d, src := range b.sources {
		src.here = true
		b.sources[d] = src
	}
	return nil
}

// reader is a blob's bytes from an offset on.
func reader(b io.ReaderAt, size, offset int64) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(b, offset, size-offset))
}

// bytesReader is reader for a document.
func (d document) reader(offset int64) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(d.raw), offset, int64(len(d.raw))-offset))
}
