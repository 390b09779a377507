package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/oci"
)

// nameAnnotation is the full name of an image in an index.json, as containerd
// and docker write it.
const nameAnnotation = "io.containerd.image.name"

// dockerManifestEntry is one image in the manifest.json of docker save.
type dockerManifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// packed is an image in an archive, with its canonical names.
type packed struct {
	*Blobs
	names []string
}

// Save writes images to an archive as docker save does: an OCI layout that
// also has the manifest.json of older dockers. A name without a tag is all
// tags of its repository.
func (m *Images) Save(ctx context.Context, w io.Writer, names []string, f Format) error {
	var list []packed
	defer func() {
		for _, p := range list {
			p.Close()
		}
	}()
	byTarget := map[oci.Digest]int{}
	for _, name := range names {
		found, err := m.saved(ctx, name)
		if err != nil {
			return fmt.Errorf("save: %w", err)
		}
		for _, e := range found {
			b, err := m.Blobs(ctx, e.Images, f)
			if err != nil {
				return fmt.Errorf("save: %w", err)
			}
			n, seen := byTarget[b.Target.Digest]
			if !seen {
				n = len(list)
				byTarget[b.Target.Digest] = n
				list = append(list, packed{Blobs: b})
			} else {
				list[n].held = append(list[n].held, b.held...)
			}
			if e.name != "" && !slices.Contains(list[n].names, e.name) {
				list[n].names = append(list[n].names, e.name)
			}
		}
	}
	t := &tarLayout{w: tar.NewWriter(w)}
	if err := m.writeLayout(ctx, t, list, true, f); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return t.w.Close()
}

// saved finds what Save means by a name. Entries whose name is not to be
// written, since an ID was given, lose it.
func (m *Images) saved(ctx context.Context, name string) ([]*entry, error) {
	ref, err := oci.ParseName(name)
	if err == nil && ref.Tag == "" && ref.Digest == "" {
		all, err := m.entries(ctx)
		if err != nil {
			return nil, err
		}
		var found []*entry
		for _, e := range all {
			if r, err := oci.ParseName(e.name); err == nil && r.Name() == ref.Name() && r.Tag != "" {
				found = append(found, e)
			}
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	e, img, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	found := *e
	if img != nil {
		found.name, found.Images = "", []*Image{img}
	}
	if untagged(found.name) {
		found.name = ""
	}
	return []*entry{&found}, nil
}

// ExportOCI writes an image to w as an OCI layout in a tar (type=oci).
func (m *Images) ExportOCI(ctx context.Context, w io.Writer, b *Blobs, names []string, f Format) error {
	return m.export(ctx, w, b, names, false, f)
}

// ExportDocker writes an image to w as docker save would (type=docker). It
// cannot hold several platforms.
func (m *Images) ExportDocker(ctx context.Context, w io.Writer, b *Blobs, names []string, f Format) error {
	if len(b.Images) > 1 {
		return fmt.Errorf("export image: the docker format holds one platform, not %d; use type=oci: %w", len(b.Images), errdefs.ErrInvalidArgument)
	}
	return m.export(ctx, w, b, names, true, f)
}

func (m *Images) export(ctx context.Context, w io.Writer, b *Blobs, names []string, docker bool, f Format) error {
	p, err := pack(b, names)
	if err != nil {
		return err
	}
	t := &tarLayout{w: tar.NewWriter(w)}
	if err := m.writeLayout(ctx, t, []packed{p}, docker, f); err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	return t.w.Close()
}

// ExportLayout writes an image into an OCI layout directory (type=oci,
// tar=false). What the layout held before stays, but for the same names.
func (m *Images) ExportLayout(ctx context.Context, dir string, b *Blobs, names []string, f Format) error {
	p, err := pack(b, names)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	defer root.Close()
	if err := m.writeLayout(ctx, &dirLayout{root: root}, []packed{p}, false, f); err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	return nil
}

func pack(b *Blobs, names []string) (packed, error) {
	p := packed{Blobs: b}
	for _, name := range names {
		ref, err := parseTag(name)
		if err != nil {
			return packed{}, err
		}
		p.names = append(p.names, ref.String())
	}
	return p, nil
}

// writeLayout writes images into a layout: blobs, then the files that name
// them.
func (m *Images) writeLayout(ctx context.Context, to layout, list []packed, docker bool, f Format) error {
	sources := map[oci.Digest]source{}
	documents := map[oci.Digest]document{}
	for _, p := range list {
		if err := m.gather(ctx, p.Blobs, f.Sink, f.Vertex); err != nil {
			return err
		}
		maps.Copy(sources, p.sources)
		maps.Copy(documents, p.documents)
	}
	digests := slices.Concat(slices.Collect(maps.Keys(sources)), slices.Collect(maps.Keys(documents)))
	slices.Sort(digests)
	for _, d := range slices.Compact(digests) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if doc, ok := documents[d]; ok {
			if err := to.put(blobPath(d), int64(len(doc.raw)), bytes.NewReader(doc.raw)); err != nil {
				return err
			}
			continue
		}
		if err := m.copyBlob(ctx, to, d); err != nil {
			return err
		}
	}
	return writeNames(to, list, docker, m.o.Platform)
}

func (m *Images) copyBlob(ctx context.Context, to layout, d oci.Digest) error {
	b, err := m.st.Blob(ctx, d)
	if err != nil {
		return err
	}
	return release(to.put(blobPath(d), b.Size(), b.Reader()), b)
}

func blobPath(d oci.Digest) string { return "blobs/" + string(d.Algorithm()) + "/" + d.Encoded() }

// writeNames writes the files of a layout that say what its blobs are.
func writeNames(to layout, list []packed, docker bool, def oci.Platform) error {
	index, err := to.index()
	if err != nil {
		return err
	}
	if index == nil {
		index = &oci.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []oci.Descriptor{}}
		index.SchemaVersion = 2
	}
	var entries []dockerManifestEntry
	repositories := map[string]map[string]string{}
	for _, p := range list {
		addToIndex(index, p)
		img := bestOf(p.Images, def)
		e := dockerManifestEntry{Config: blobPath(img.ConfigDigest), RepoTags: []string{}, Layers: []string{}}
		for _, l := range img.Layers {
			e.Layers = append(e.Layers, blobPath(l.Blob.Digest))
		}
		for _, name := range p.names {
			ref, err := oci.ParseReference(name)
			if err != nil || ref.Tag == "" {
				continue
			}
			e.RepoTags = append(e.RepoTags, ref.Familiar())
			if repositories[ref.FamiliarName()] == nil {
				repositories[ref.FamiliarName()] = map[string]string{}
			}
			repositories[ref.FamiliarName()][ref.Tag] = img.ConfigDigest.Encoded()
		}
		entries = append(entries, e)
	}
	files := []struct {
		name string
		v    any
		on   bool
	}{
		{"index.json", index, true},
		{"manifest.json", entries, docker},
		{"oci-layout", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}, true},
		{"repositories", repositories, docker && len(repositories) > 0},
	}
	for _, f := range files {
		if !f.on {
			continue
		}
		raw, err := json.Marshal(f.v)
		if err != nil {
			return err
		}
		if err := to.put(f.name, int64(len(raw)), bytes.NewReader(raw)); err != nil {
			return err
		}
	}
	return nil
}

// addToIndex lists an image once for each of its names.
func addToIndex(index *oci.Index, p packed) {
	base := oci.Descriptor{MediaType: p.Target.MediaType, Digest: p.Target.Digest, Size: p.Target.Size}
	if !p.index {
		platform := p.Images[0].Platform
		base.Platform = &platform
	}
	names := p.names
	if len(names) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		d := base
		d.Annotations = maps.Clone(p.Target.Annotations)
		if ref, err := oci.ParseReference(name); err == nil && name != "" {
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations[nameAnnotation] = name
			if ref.Tag != "" {
				d.Annotations[ocispec.AnnotationRefName] = ref.Tag
			}
		}
		index.Manifests = slices.DeleteFunc(index.Manifests, func(old oci.Descriptor) bool {
			if name == "" {
				return old.Digest == d.Digest && old.Annotations[nameAnnotation] == ""
			}
			return old.Annotations[nameAnnotation] == name
		})
		index.Manifests = append(index.Manifests, d)
	}
}
