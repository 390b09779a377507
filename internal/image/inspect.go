package image

import (
	"context"
	"slices"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"den/internal/oci"
)

// Inspection is what docker image inspect prints, under Docker's names.
type Inspection struct {
	ID           oci.Digest `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Comment      string `json:",omitempty"`
	Created      string `json:",omitempty"`
	Author       string `json:",omitempty"`
	Config       *dockerspec.DockerOCIImageConfig
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	OsVersion    string `json:",omitempty"`
	Size         int64
	RootFS       RootFS
	Metadata     Metadata
	Descriptor   *oci.Descriptor `json:",omitempty"`
}

// RootFS lists an image's layers in an Inspection.
type RootFS struct {
	Type   string       `json:",omitempty"`
	Layers []oci.Digest `json:",omitempty"`
}

// Metadata is what this engine knows about an image besides what is in it.
type Metadata struct {
	LastTagTime time.Time `json:",omitempty"`
}

// Inspect describes an image that is here. A nil platform is the default one.
func (m *Images) Inspect(ctx context.Context, name string, p *oci.Platform) (*Inspection, error) {
	e, img, c, err := m.look(ctx, name, p)
	if err != nil {
		return nil, err
	}
	x := &Inspection{
		ID: img.ConfigDigest, RepoTags: []string{}, RepoDigests: []string{},
		Author: c.Author, Config: &c.Config,
		Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion,
		RootFS:     RootFS{Type: "layers", Layers: img.DiffIDs()},
		Metadata:   Metadata{LastTagTime: e.tagged},
		Descriptor: img.Target,
	}
	if n := len(c.History); n > 0 {
		x.Comment = c.History[n-1].Comment
	}
	if c.Created != nil {
		x.Created = c.Created.Format(time.RFC3339Nano)
	}
	if x.Size, err = m.size(ctx, img, map[oci.Digest]int64{}); err != nil {
		return nil, err
	}
	s, err := m.namesOf(ctx, img)
	if err != nil {
		return nil, err
	}
	x.RepoTags, x.RepoDigests = append(x.RepoTags, s.Tags...), append(x.RepoDigests, s.Digests...)
	return x, nil
}

// HistoryRow is one line of docker history.
type HistoryRow struct {
	// ID is the image's in its first line and "<missing>" in all others.
	ID        string `json:"Id"`
	Created   int64  // seconds since 1970
	CreatedBy string
	Tags      []string
	Size      int64
	Comment   string
}

// History lists how an image came to be, youngest first.
func (m *Images) History(ctx context.Context, name string, p *oci.Platform) ([]HistoryRow, error) {
	_, img, c, err := m.look(ctx, name, p)
	if err != nil {
		return nil, err
	}
	rows := make([]HistoryRow, 0, len(c.History))
	n := 0
	for _, h := range c.History {
		row := HistoryRow{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			row.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && n < len(img.Layers) {
			if row.Size, err = m.layerSize(ctx, img.Layers[n]); err != nil {
				return nil, err
			}
			n++
		}
		rows = append(rows, row)
	}
	slices.Reverse(rows)
	if len(rows) == 0 {
		return rows, nil
	}
	rows[0].ID = string(img.ConfigDigest)
	s, err := m.namesOf(ctx, img)
	if err != nil {
		return nil, err
	}
	rows[0].Tags = s.Tags
	return rows, nil
}

// look finds an image that is here and reads its configuration.
func (m *Images) look(ctx context.Context, name string, p *oci.Platform) (*entry, *Image, *oci.Image, error) {
	e, img, err := m.find(ctx, name)
	if err != nil {
		return nil, nil, nil, err
	}
	if img == nil {
		if img, err = e.choose(p, m.o.Platform); err != nil {
			return nil, nil, nil, err
		}
	}
	c, err := img.Parse()
	return e, img, c, err
}

// namesOf collects all names of an image.
func (m *Images) namesOf(ctx context.Context, img *Image) (*Summary, error) {
	all, err := m.entries(ctx)
	if err != nil {
		return nil, err
	}
	s := &Summary{}
	for _, e := range all {
		if e.has(img.ConfigDigest) {
			e.names(s)
		}
	}
	return s, nil
}
