package image

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"den/internal/oci"
)

// maxLayers is what the kernel takes as lower directories of one overlay
// (OVL_MAX_STACK); an image with more can neither be run nor built on.
const maxLayers = 500

// attestationType annotates the manifests of an index that are about another
// one, not an image (BuildKit, docs/attestations/attestation-storage.md).
const attestationType = "vnd.docker.reference.type"

// parseImageManifest is oci.ParseManifest for something that can be run.
func parseImageManifest(raw []byte, mediaType string) (*oci.Manifest, error) {
	m, err := oci.ParseManifest(raw, mediaType)
	if err != nil {
		return nil, err
	}
	switch t := m.Config.MediaType; {
	case t == ocispec.MediaTypeEmptyJSON || m.ArtifactType != "":
		return nil, fmt.Errorf("manifest: artifact of type %.100q, not an image: %w", m.ArtifactType, errdefs.ErrInvalidArgument)
	case !oci.IsConfig(t) && t != "" && t != "application/octet-stream":
		return nil, fmt.Errorf("manifest: configuration of type %.100q, not an image's: %w", t, errdefs.ErrInvalidArgument)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("manifest: %w", errTooManyLayers(len(m.Layers)))
	}
	for i, l := range m.Layers {
		if strings.Contains(l.MediaType, "+encrypted") {
			return nil, fmt.Errorf("manifest: layer %d is encrypted and den has no keys: %w", i, errdefs.ErrInvalidArgument)
		}
		if !oci.IsLayer(l.MediaType) {
			return nil, fmt.Errorf("manifest: layer %d of type %.100q, not a file system layer: %w", i, l.MediaType, errdefs.ErrInvalidArgument)
		}
	}
	return m, nil
}

func errTooManyLayers(n int) error {
	return fmt.Errorf("%d layers, the most that can be mounted is %d: %w", n, maxLayers, errdefs.ErrInvalidArgument)
}

func checkLayers(layers []Layer) error {
	if len(layers) > maxLayers {
		return errTooManyLayers(len(layers))
	}
	for _, l := range layers {
		if err := oci.CheckDigest(l.DiffID); err != nil {
			return err
		}
	}
	return nil
}

// parseConfig decodes and checks the parts of a configuration that den acts
// on.
func parseConfig(raw []byte) (*oci.Image, error) {
	if len(raw) > oci.MaxConfigBytes {
		return nil, fmt.Errorf("configuration of %d bytes: %w", len(raw), oci.ErrTooLarge)
	}
	var c oci.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if t := c.RootFS.Type; t != "layers" && t != "" {
		return nil, fmt.Errorf("configuration: root file system of type %.40q: %w", t, errdefs.ErrInvalidArgument)
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return nil, fmt.Errorf("configuration: %w", errTooManyLayers(len(c.RootFS.DiffIDs)))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := oci.CheckDigest(d); err != nil {
			return nil, fmt.Errorf("configuration: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return &c, nil
}

// layersOf pairs a manifest's blobs with its configuration's diffIDs.
func layersOf(m *oci.Manifest, c *oci.Image, repo string) ([]Layer, error) {
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return nil, fmt.Errorf("manifest has %d layers, its configuration names %d: %w",
			len(m.Layers), len(c.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	layers := make([]Layer, len(m.Layers))
	for i := range m.Layers {
		blob := m.Layers[i]
		layers[i] = Layer{DiffID: c.RootFS.DiffIDs[i], Blob: &blob, Repo: repo}
	}
	return layers, nil
}
