package image

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/oci"
)

// Result is what a build leaves for one platform.
type Result struct {
	// Config is the configuration as the frontend wrote it: without the
	// diffIDs of what it built, and with holes in its history. Empty is the
	// configuration of an image from scratch.
	Config []byte
	// Base is the configuration of the base image, nil without one: its
	// layers and history keep their times.
	Base   []byte
	Layers []Layer
	// Epoch is SOURCE_DATE_EPOCH, nil if not set: no time in the
	// configuration is later.
	Epoch *time.Time
	// Annotations for the manifest; DescriptorAnnotations where it is named.
	Annotations, DescriptorAnnotations map[string]string
	// Extra fields of the configuration, such as BuildKit's inline cache
	// ("moby.buildkit.cache.v0").
	Extra map[string]json.RawMessage
}

// Assemble completes the configuration of a build's result as BuildKit's
// exporter does (exporter/containerimage/writer.go, patchImageConfig and
// normalizeLayersAndHistory), so that both give the same image for the same
// layers. It reads and writes nothing.
func Assemble(r Result) (*Image, error) {
	if err := checkLayers(r.Layers); err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	config := r.Config
	if len(config) == 0 {
		var err error
		if config, err = scratchConfig(); err != nil {
			return nil, fmt.Errorf("assemble image: %w", err)
		}
	}
	config, err := patchConfig(config, r)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	img, err := newImage(config, r.Layers)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	img.Annotations, img.DescriptorAnnotations = r.Annotations, r.DescriptorAnnotations
	return img, nil
}

// scratchConfig is the configuration of an image that nobody configured.
func scratchConfig() ([]byte, error) {
	var c ocispec.Image
	p := normalized(oci.Platform{})
	c.Platform = p
	c.RootFS.Type = "layers"
	c.Config.WorkingDir = "/"
	c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return json.Marshal(c)
}

// patchConfig sets rootfs, history and created, and leaves every field that
// den does not know as it is.
func patchConfig(config []byte, r Result) ([]byte, error) {
	if len(config) > oci.MaxConfigBytes {
		return nil, fmt.Errorf("configuration of %d bytes: %w", len(config), oci.ErrTooLarge)
	}
	var known ocispec.Image
	if err := json.Unmarshal(config, &known); err != nil {
		return nil, fmt.Errorf("configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &fields); err != nil || fields == nil {
		return nil, fmt.Errorf("configuration is not an object: %w", errdefs.ErrInvalidArgument)
	}
	if known.OS == "" || known.Architecture == "" {
		return nil, fmt.Errorf("configuration lacks os or architecture: %w", errdefs.ErrInvalidArgument)
	}
	history := alignHistory(known.History, r.Layers)
	if r.Epoch != nil {
		clampHistory(history, r.Base, *r.Epoch)
	}
	rootFS := ocispec.RootFS{Type: "layers"}
	for _, l := range r.Layers {
		rootFS.DiffIDs = append(rootFS.DiffIDs, l.DiffID)
	}
	created := known.Created
	switch {
	case created != nil && r.Epoch != nil && created.After(*r.Epoch):
		created = r.Epoch
	case created == nil:
		for _, h := range history {
			if h.Created != nil {
				created = h.Created
			}
		}
	}
	set := map[string]any{"rootfs": rootFS, "history": history}
	if known.Created == nil || created != known.Created {
		set["created"] = created
	}
	for name, v := range r.Extra {
		set[name] = v
	}
	for name, v := range set {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("configuration field %s: %w", name, err)
		}
		fields[name] = raw
	}
	return json.Marshal(fields)
}

// alignHistory gives every layer its line of history and every line a time.
func alignHistory(in []oci.History, layers []Layer) []oci.History {
	history := make([]oci.History, 0, len(in))
	n := 0
	for _, h := range in {
		// A history that claims more layers than there are is cut from the
		// top: the lines stay, as lines about nothing.
		if !h.EmptyLayer && n >= len(layers) {
			h.EmptyLayer = true
		}
		if !h.EmptyLayer {
			if h.Created == nil {
				h.Created = utc(layers[n].Created)
			}
			n++
		}
		history = append(history, h)
	}
	for _, l := range layers[n:] {
		history = append(history, oci.History{
			Created:   utc(l.Created),
			CreatedBy: "created by buildkit",
			Comment:   "buildkit.exporter.image.v0",
		})
	}
	fillTimes(history)
	return history
}

// utc is t in the one zone that does not depend on where a build ran.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// fillTimes dates the lines without a time: the first new layer's time, then
// that of the line before. Else a first metadata line would be as old as the
// base image.
func fillTimes(history []oci.History) {
	var created *time.Time
	missing := false
	for _, h := range history {
		if h.Created == nil {
			missing = true
			continue
		}
		created = h.Created
		if missing {
			break
		}
	}
	missing = false
	for i, h := range history {
		if h.Created == nil {
			missing = true
			history[i].Created = created
		} else if missing {
			created = h.Created
		}
	}
}

// clampHistory lets no line above the base's be younger than epoch.
func clampHistory(history []oci.History, base []byte, epoch time.Time) {
	var b ocispec.Image
	if len(base) > 0 && json.Unmarshal(base, &b) != nil {
		b.History = nil // no base that can be read: every line is new
	}
	for i := range history {
		if i < len(b.History) && reflect.DeepEqual(history[i], b.History[i]) {
			continue
		}
		b.History = nil // from here on the image is its own
		if history[i].Created == nil || history[i].Created.After(epoch) {
			history[i].Created = &epoch
		}
	}
}

// newImage checks that config and layers belong together.
func newImage(config []byte, layers []Layer) (*Image, error) {
	c, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	if len(c.RootFS.DiffIDs) != len(layers) {
		return nil, fmt.Errorf("configuration names %d layers, the manifest has %d: %w",
			len(c.RootFS.DiffIDs), len(layers), errdefs.ErrInvalidArgument)
	}
	for i, l := range layers {
		if l.DiffID != c.RootFS.DiffIDs[i] {
			return nil, fmt.Errorf("layer %d: %w", i, &oci.DigestError{Want: c.RootFS.DiffIDs[i], Got: l.DiffID})
		}
	}
	return &Image{
		Config:       config,
		ConfigDigest: digest.FromBytes(config),
		Layers:       layers,
		Platform:     normalized(c.Platform),
	}, nil
}
