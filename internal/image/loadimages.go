package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/layer"
	"den/internal/oci"
)

// images finds the images of an archive: those that index.json lists, and
// those that only manifest.json does. Entries are named, or have none.
func (a *archive) images(ctx context.Context) ([]*entry, error) {
	if !a.has("index.json") && !a.has("manifest.json") {
		return nil, fmt.Errorf("archive has neither index.json nor manifest.json, so it holds no image; "+
			"a root file system is taken by den import: %w", errdefs.ErrInvalidArgument)
	}
	var found []*entry
	if a.has("index.json") {
		var err error
		if found, err = a.layoutImages(); err != nil {
			return nil, err
		}
	}
	if a.has("manifest.json") {
		legacy, err := a.dockerImages(ctx, found)
		if err != nil {
			return nil, err
		}
		found = append(found, legacy...)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("archive lists no image: %w", errdefs.ErrInvalidArgument)
	}
	return found, nil
}

// has reports whether the archive has a member of that name.
func (a *archive) has(name string) bool {
	_, ok := a.files[name]
	return ok
}

// layoutImages reads an OCI layout.
func (a *archive) layoutImages() ([]*entry, error) {
	raw, err := a.document("index.json", oci.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	index, err := oci.ParseIndex(raw, oci.MediaTypeIndex)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) > maxArchiveImages {
		return nil, fmt.Errorf("index.json lists more than %d images: %w", maxArchiveImages, oci.ErrTooLarge)
	}
	var found []*entry
	for _, d := range index.Manifests {
		if d.Annotations[attestationType] != "" {
			continue
		}
		e, err := a.target(d)
		if err != nil {
			return nil, fmt.Errorf("index.json: %s: %w", d.Digest, err)
		}
		e.name = layoutName(d)
		found = append(found, e)
	}
	return found, nil
}

// layoutName is the name that an index.json gives an image: one with a
// repository. A tag alone names nothing.
func layoutName(d oci.Descriptor) string {
	for _, key := range []string{nameAnnotation, ocispec.AnnotationRefName} {
		name := d.Annotations[key]
		if !strings.ContainsAny(name, "/:") {
			continue
		}
		if ref, err := parseTag(name); err == nil {
			return ref.String()
		}
	}
	return ""
}

// target reads what a descriptor of index.json stands for.
func (a *archive) target(d oci.Descriptor) (*entry, error) {
	b, err := a.blob(d.Digest)
	if err != nil {
		return nil, err
	}
	raw, err := a.document(blobPath(d.Digest), oci.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	desc, raw, err := describe(raw, d.MediaType, b.Digest())
	if err != nil {
		return nil, err
	}
	e := &entry{Target: &desc}
	if !oci.IsIndex(desc.MediaType) {
		img, err := a.image(desc, raw)
		if err != nil {
			return nil, err
		}
		e.add(img)
		return e, nil
	}
	index, err := oci.ParseIndex(raw, desc.MediaType)
	if err != nil {
		return nil, err
	}
	var missing error
	for _, child := range images(index) {
		raw, err := a.document(blobPath(child.Digest), oci.MaxManifestBytes)
		if errdefs.IsNotFound(err) {
			missing = err // an archive may hold some of the platforms
			continue
		}
		if err != nil {
			return nil, err
		}
		if got := digest.FromBytes(raw); got != child.Digest {
			return nil, &oci.DigestError{Want: child.Digest, Got: got}
		}
		desc, raw, err := describe(raw, child.MediaType, child.Digest)
		if err != nil {
			return nil, err
		}
		img, err := a.image(desc, raw)
		if errdefs.IsNotFound(err) {
			missing = err
			continue
		}
		if err != nil {
			return nil, err
		}
		e.add(img)
	}
	if len(e.Images) == 0 {
		return nil, errors.Join(fmt.Errorf("index lists no image that is in the archive: %w", errdefs.ErrInvalidArgument), missing)
	}
	return e, nil
}

// image reads the image of a manifest. All its blobs must be here.
func (a *archive) image(desc oci.Descriptor, raw []byte) (*Image, error) {
	manifest, err := parseImageManifest(raw, desc.MediaType)
	if err != nil {
		return nil, err
	}
	for _, l := range manifest.Layers {
		b, err := a.blob(l.Digest)
		if err != nil {
			return nil, err
		}
		if b.Size() != l.Size {
			return nil, fmt.Errorf("layer %s has %d bytes, its manifest says %d: %w", l.Digest, b.Size(), l.Size, errdefs.ErrInvalidArgument)
		}
	}
	if _, err := a.blob(manifest.Config.Digest); err != nil {
		return nil, err
	}
	config, err := a.document(blobPath(manifest.Config.Digest), oci.MaxConfigBytes)
	if err != nil {
		return nil, err
	}
	return imageOf(desc, manifest, config, "")
}

// dockerImages reads manifest.json. An image that index.json listed too only
// gets the names from it, unless it has some.
func (a *archive) dockerImages(ctx context.Context, known []*entry) ([]*entry, error) {
	raw, err := a.document("manifest.json", oci.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	entries, err := parseDockerManifest(raw)
	if err != nil {
		return nil, err
	}
	var found []*entry
	for i, d := range entries {
		config, err := a.document(d.Config, oci.MaxConfigBytes)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: image %d: %w", i, err)
		}
		e := named(known, digest.FromBytes(config))
		if e == nil {
			img, err := a.dockerImage(ctx, d, config)
			if err != nil {
				return nil, fmt.Errorf("manifest.json: image %d: %w", i, err)
			}
			e = &entry{Images: []*Image{img}}
			found = append(found, e)
		}
		if e.name != "" {
			continue
		}
		for n, tag := range d.RepoTags {
			ref, err := parseTag(tag)
			if err != nil {
				return nil, fmt.Errorf("manifest.json: image %d: %w", i, err)
			}
			if n == 0 {
				e.name = ref.String()
				continue
			}
			found = append(found, &entry{Target: e.Target, Images: e.Images, name: ref.String()})
		}
	}
	return found, nil
}

// named returns the entry of a configuration, if index.json listed it.
func named(known []*entry, config oci.Digest) *entry {
	for _, e := range known {
		if e.has(config) {
			return e
		}
	}
	return nil
}

// parseDockerManifest decodes and bounds a manifest.json.
func parseDockerManifest(raw []byte) ([]dockerManifestEntry, error) {
	var entries []dockerManifestEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("manifest.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(entries) > maxArchiveImages {
		return nil, fmt.Errorf("manifest.json lists more than %d images: %w", maxArchiveImages, oci.ErrTooLarge)
	}
	for i, e := range entries {
		if e.Config == "" {
			return nil, fmt.Errorf("manifest.json: image %d has no configuration: %w", i, errdefs.ErrInvalidArgument)
		}
		if len(e.Layers) > maxLayers {
			return nil, fmt.Errorf("manifest.json: image %d: %w", i, errTooManyLayers(len(e.Layers)))
		}
		if len(e.RepoTags) > maxArchiveImages {
			return nil, fmt.Errorf("manifest.json: image %d has more than %d names: %w", i, maxArchiveImages, oci.ErrTooLarge)
		}
	}
	return entries, nil
}

// dockerImage puts together an image of manifest.json, whose layers are found
// by their place only; that they are the right ones shows when they are
// unpacked.
func (a *archive) dockerImage(ctx context.Context, d dockerManifestEntry, config []byte) (*Image, error) {
	c, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	if len(d.Layers) != len(c.RootFS.DiffIDs) {
		return nil, fmt.Errorf("it has %d layers, its configuration names %d: %w", len(d.Layers), len(c.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	layers := make([]Layer, len(d.Layers))
	for i, name := range d.Layers {
		b, err := a.open(name)
		if err != nil {
			return nil, err
		}
		mediaType, err := sniff(b.Reader())
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		blob := oci.Descriptor{MediaType: mediaType, Digest: b.Digest(), Size: b.Size()}
		layers[i] = Layer{DiffID: c.RootFS.DiffIDs[i], Blob: &blob}
	}
	return newImage(config, layers)
}

// adopt verifies what was found and names it.
func (m *Images) adopt(ctx context.Context, found []*entry, o LoadOptions) ([]Loaded, error) {
	for _, e := range found {
		img, err := e.choose(nil, m.wish(o.Platform))
		if err != nil {
			return nil, err
		}
		if m.o.NoTrees == nil {
			trees, err := m.Trees(ctx, img.Layers, TreeOptions{Sink: o.Sink, Vertex: o.Vertex})
			if err != nil {
				return nil, err
			}
			for i, t := range trees {
				img.Layers[i].SizeBytes = t.Meta().SizeBytes
			}
			defer closeTrees(trees)
		}
		for _, img := range e.Images {
			if err := m.checkHere(ctx, img); err != nil {
				return nil, err
			}
		}
	}
	var loaded []Loaded
	for _, e := range found {
		l := Loaded{ConfigDigest: bestOf(e.Images, m.wish(o.Platform)).ConfigDigest}
		if e.name == "" {
			e.name = string(e.id())
		} else {
			l.Name = familiar(e.name)
		}
		e.tagged = time.Now()
		if err := m.give(ctx, e); err != nil {
			return loaded, err
		}
		if !slices.Contains(loaded, l) {
			loaded = append(loaded, l)
		}
	}
	return loaded, nil
}

// sniff finds the media type of a layer by its first bytes.
func sniff(r interface{ Read([]byte) (int, error) }) (string, error) {
	z, c, err := layer.Decompress(r)
	if err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	switch c {
	case layer.Gzip:
		return oci.MediaTypeLayerGzip, nil
	case layer.Zstd:
		return oci.MediaTypeLayerZstd, nil
	case layer.Uncompressed:
		return oci.MediaTypeLayer, nil
	}
	return "", fmt.Errorf("compression %s is not one of layers: %w", c, errdefs.ErrInvalidArgument)
}
