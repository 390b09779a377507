package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// ImportOptions refine Import.
type ImportOptions struct {
	// Name to give; empty leaves the image untagged.
	Name string
	// Changes are Dockerfile instructions for the configuration.
	Changes []string
	// Message is the comment of the image's one line of history.
	Message string
	// Platform of the files; nil is the default platform.
	Platform *oci.Platform
	// From says in the history where the tar came from ("-" or a URL).
	From string
}

// Import makes an image of one layer out of a tar, compressed or not.
func (m *Images) Import(ctx context.Context, r io.Reader, o ImportOptions) (*Image, error) {
	if o.Name != "" {
		if _, err := parseTag(o.Name); err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
	}
	now := time.Now().UTC()
	config := oci.Image{}
	config.Platform = m.wish(o.Platform)
	config.Created = &now
	config.RootFS.Type = "layers"
	config.History = []oci.History{{Created: &now, Comment: o.Message}}
	if m.o.Version != "" {
		config.History[0].CreatedBy = "den import # den " + m.o.Version
	}
	if o.Message == "" {
		from := o.From
		if from == "" {
			from = "-"
		}
		config.History[0].Comment = "Imported from " + from
	}
	if err := ApplyChanges(&config, o.Changes); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	tree, err := m.ImportLayer(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer tree.Close()
	config.RootFS.DiffIDs = []oci.Digest{tree.DiffID()}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	img, err := newImage(raw, []Layer{{DiffID: tree.DiffID(), SizeBytes: tree.Meta().SizeBytes, Created: &now}})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	b := Built{Images: []*Image{img}}
	if o.Name != "" {
		b.Names = []string{o.Name}
	}
	return m.Commit(ctx, b)
}

// ImportLayer makes a layer out of a foreign tar, compressed or not. Its
// diffID is that of the canonical tar of the same tree, so that it can be had
// from the tree at any time.
func (m *Images) ImportLayer(ctx context.Context, r io.Reader) (*store.Layer, error) {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	draft, err := m.st.NewDraft(ctx)
	if err != nil {
		return nil, release(err, plain)
	}
	defer draft.Close()
	watch, err := draft.Watch(ctx)
	if err != nil {
		return nil, release(err, plain)
	}
	o := m.treeOptions()
	o.Unnamed = true // the name is the canonical tar's
	_, err = layer.Unpack(watch.Context(), watch.Paced(plain), draft.FS(), o)
	if err := release(errors.Join(err, watch.Stop()), plain); err != nil {
		return nil, err
	}
	a, err := layer.WriteTar(ctx, io.Discard, layer.WalkUpper(draft.FS()))
	if err != nil {
		return nil, err
	}
	return draft.Publish(ctx, metaOf(a))
}
