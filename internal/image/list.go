package image

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"den/internal/oci"
)

// Summary is one image in a list, with all its names.
type Summary struct {
	ConfigDigest oci.Digest
	// Tags and Digests as a person types them: "debian:bookworm" and
	// "debian@sha256:...".
	Tags, Digests []string
	Created       time.Time
	SizeBytes     int64
	Labels        map[string]string
	// Platforms that are known here.
	Platforms []oci.Platform
}

// Dangling reports whether the image has no name at all.
func (s *Summary) Dangling() bool { return len(s.Tags) == 0 && len(s.Digests) == 0 }

// Row is one line of docker images.
type Row struct {
	// Repository, Tag and Digest are "<none>" where there is none.
	Repository, Tag, Digest string
	*Summary
}

const none = "<none>"

// Rows are the image's lines in docker images: one for each tag, with the
// digest of its repository.
func (s *Summary) Rows() []Row {
	var rows []Row
	digests := map[string]string{} // by repository, until a tag takes it
	for _, d := range s.Digests {
		if ref, err := oci.ParseName(d); err == nil {
			digests[ref.FamiliarName()] = string(ref.Digest)
		}
	}
	tagged := map[string]bool{}
	for _, t := range s.Tags {
		ref, err := oci.ParseName(t)
		if err != nil {
			continue
		}
		repo := ref.FamiliarName()
		tagged[repo] = true
		rows = append(rows, Row{repo, ref.Tag, cmp.Or(digests[repo], none), s})
	}
	for _, d := range s.Digests {
		if ref, err := oci.ParseName(d); err == nil && !tagged[ref.FamiliarName()] {
			rows = append(rows, Row{ref.FamiliarName(), none, string(ref.Digest), s})
		}
	}
	if len(rows) == 0 {
		rows = []Row{{none, none, none, s}}
	}
	return rows
}

// List returns the images that pass the filters, youngest first. The filters
// are those of docker images: reference, dangling, label, before, since and
// until, the values of one key being alternatives.
func (m *Images) List(ctx context.Context, filters map[string][]string) ([]*Summary, error) {
	all, err := m.entries(ctx)
	if err != nil {
		return nil, err
	}
	keep, err := m.filter(ctx, filters)
	if err != nil {
		return nil, err
	}
	list, err := m.summaries(ctx, all)
	if err != nil {
		return nil, err
	}
	var out []*Summary
	for _, s := range list {
		if keep(s) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b *Summary) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// summaries groups entries by image.
func (m *Images) summaries(ctx context.Context, all []*entry) ([]*Summary, error) {
	byID := map[oci.Digest]*Summary{}
	sizes := map[oci.Digest]int64{} // images share most of their layers
	var list []*Summary
	for _, e := range all {
		img := bestOf(e.Images, m.o.Platform)
		s := byID[img.ConfigDigest]
		if s == nil {
			var err error
			if s, err = m.summary(ctx, img, sizes); err != nil {
				return nil, err
			}
			byID[img.ConfigDigest] = s
			list = append(list, s)
		}
		for _, other := range e.Images {
			if !slices.ContainsFunc(s.Platforms, func(p oci.Platform) bool { return samePlatform(p, other.Platform) }) {
				s.Platforms = append(s.Platforms, other.Platform)
			}
		}
		e.names(s)
	}
	return list, nil
}

func samePlatform(a, b oci.Platform) bool {
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant && a.OSVersion == b.OSVersion
}

// names adds the entry's tag and digest to s.
func (e *entry) names(s *Summary) {
	if untagged(e.name) {
		return
	}
	ref, err := oci.ParseReference(e.name)
	if err != nil {
		return
	}
	if ref.Tag != "" && ref.Digest == "" {
		s.Tags = append(s.Tags, ref.Familiar())
	}
	if d := e.digestRef(ref); d != "" && !slices.Contains(s.Digests, d) {
		s.Digests = append(s.Digests, d)
	}
}

// digestRef is the entry's name by digest, or "".
func (e *entry) digestRef(ref oci.Reference) string {
	if e.Target == nil {
		return ""
	}
	return ref.WithDigest(e.Target.Digest).Familiar()
}

func (m *Images) summary(ctx context.Context, img *Image, sizes map[oci.Digest]int64) (*Summary, error) {
	s := &Summary{ConfigDigest: img.ConfigDigest}
	c, err := img.Parse()
	if err != nil {
		return nil, err
	}
	if c.Created != nil {
		s.Created = *c.Created
	}
	s.Labels = c.Config.Labels
	s.SizeBytes, err = m.size(ctx, img, sizes)
	return s, err
}

// size is the sum of an image's layers: of their files where they are here,
// else of their blobs. known holds and gets the sizes of layers.
func (m *Images) size(ctx context.Context, img *Image, known map[oci.Digest]int64) (int64, error) {
	var sum int64
	for _, l := range img.Layers {
		n, ok := known[l.DiffID]
		if !ok {
			var err error
			if n, err = m.layerSize(ctx, l); err != nil {
				return 0, err
			}
			known[l.DiffID] = n
		}
		sum += n
	}
	return sum, nil
}

func (m *Images) layerSize(ctx context.Context, l Layer) (int64, error) {
	t, err := m.anyTree(ctx, l.DiffID)
	switch {
	case err == nil:
		n := t.Meta().TreeBytes
		return n, t.Close()
	case !errdefs.IsNotFound(err):
		return 0, err
	case l.SizeBytes > 0:
		return l.SizeBytes, nil
	case l.Blob != nil:
		return l.Blob.Size, nil
	}
	return 0, nil
}

// matchesName reports whether docker's reference filter takes a name.
func matchesName(pattern, name string) bool {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	ok, err := reference.FamiliarMatch(pattern, named)
	return ok && err == nil
}
