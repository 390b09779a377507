package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types that den reads and writes (OCI image-spec, media-types.md; Docker
// image manifest v2 schema 2).
const (
	MediaTypeManifest       = ocispec.MediaTypeImageManifest
	MediaTypeIndex          = ocispec.MediaTypeImageIndex
	MediaTypeConfig         = ocispec.MediaTypeImageConfig
	MediaTypeLayer          = ocispec.MediaTypeImageLayer
	MediaTypeLayerGzip      = ocispec.MediaTypeImageLayerGzip
	MediaTypeLayerZstd      = ocispec.MediaTypeImageLayerZstd
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	// MediaTypeDockerLayer is an uncompressed layer of Docker's.
	MediaTypeDockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	MediaTypeDockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	// MediaTypeDockerLayerZstd is what BuildKit writes into Docker manifests
	// for zstd; Docker itself never named one.
	MediaTypeDockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd"

	mediaTypeDockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	mediaTypeNondistributed = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	mediaTypeDockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
)

// Limits on documents from outside. A manifest of 4 MiB is what registries
// accept at most; the counts are far above what any builder writes and low
// enough that what they make us allocate stays in proportion.
const (
	// MaxManifestBytes bounds a manifest or an index.
	MaxManifestBytes = 4 << 20
	// MaxConfigBytes bounds an image configuration.
	MaxConfigBytes = 8 << 20
	// MaxLayers bounds the layers of one manifest.
	MaxLayers = 2048
	// MaxManifests bounds the manifests of one index.
	MaxManifests = 2048
	// MaxBlobBytes bounds the size a descriptor may claim: 8 TiB.
	MaxBlobBytes = 8 << 40

	maxDepth       = 32
	maxAnnotations = 4096
)

// IsIndex reports whether the media type is that of an image index or a Docker
// manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == MediaTypeIndex || mediaType == MediaTypeDockerIndex
}

// IsManifest reports whether the media type is that of an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == MediaTypeManifest || mediaType == MediaTypeDockerManifest
}

// IsConfig reports whether the media type is that of an image configuration.
func IsConfig(mediaType string) bool {
	return mediaType == MediaTypeConfig || mediaType == MediaTypeDockerConfig
}

// IsLayer reports whether the media type is that of a layer, of any
// compression, foreign ones included.
func IsLayer(mediaType string) bool {
	_, ok := Compression(mediaType)
	return ok
}

// IsForeign reports whether the media type is that of a layer that its
// publisher does not allow to be distributed. Registries may hold it all the same.
func IsForeign(mediaType string) bool {
	return IsLayer(mediaType) &&
		(strings.HasPrefix(mediaType, mediaTypeDockerForeign) || strings.HasPrefix(mediaType, mediaTypeNondistributed))
}

// Compression is the compression that a layer's media type declares: "gzip",
// "zstd" or "uncompressed", the names of BuildKit's compression attribute. It
// reports false if the media type is not that of a layer. The bytes may
// differ: readers sniff, only writers and names rely on it.
func Compression(mediaType string) (string, bool) {
	for _, base := range [...]string{MediaTypeLayer, MediaTypeDockerLayer, mediaTypeDockerForeign, mediaTypeNondistributed} {
		rest, ok := strings.CutPrefix(mediaType, base)
		if !ok {
			continue
		}
		switch rest {
		case "":
			return "uncompressed", true
		case "+gzip", ".gzip":
			return "gzip", true
		case "+zstd", ".zstd":
			return "zstd", true
		}
	}
	return "", false
}

// LayerMediaType is the media type of a layer with the compression that
// Compression names, for a manifest of the given media type.
func LayerMediaType(manifest, compression string) (string, error) {
	base, sep := MediaTypeLayer, "+"
	if manifest == MediaTypeDockerManifest {
		base, sep = MediaTypeDockerLayer, "."
	}
	switch compression {
	case "uncompressed":
		return base, nil
	case "gzip", "zstd":
		return base + sep + compression, nil
	}
	return "", fmt.Errorf("layer media type: compression %q is not known, want gzip, zstd or uncompressed: %w", compression, errdefs.ErrInvalidArgument)
}

// probe is what tells manifests and indexes apart.
type probe struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// DetectMediaType is the media type of a manifest or index: what it declares
// of itself, else what declared (its Content-Type or descriptor) says, else
// what its fields make it. A document whose two halves disagree, so that two
// readers would see two images in it (CVE-2021-41190), is refused.
func DetectMediaType(doc []byte, declared string) (string, error) {
	declared, _, _ = strings.Cut(declared, ";")
	declared = strings.TrimSpace(declared)
	var p probe
	if err := unmarshal(doc, MaxManifestBytes, &p); err != nil {
		return "", err
	}
	isList := len(p.Manifests) > 0
	isImage := len(p.Config) > 0 || len(p.Layers) > 0
	switch {
	case len(p.FSLayers) > 0 || p.SchemaVersion == 1 || strings.HasPrefix(declared, mediaTypeDockerSchema1):
		return "", invalid("schema 1 manifests are not supported, push the image again with Docker 1.10 or later")
	case p.SchemaVersion != 2:
		return "", invalid("schemaVersion is %d, want 2", p.SchemaVersion)
	case isList && isImage:
		return "", invalid("both a manifest and an index")
	case !isList && !isImage:
		return "", invalid("neither a manifest nor an index")
	}
	known := IsIndex(declared) || IsManifest(declared)
	mediaType := p.MediaType
	switch {
	case mediaType == "" && known:
		mediaType = declared
	case mediaType == "" && isList:
		mediaType = MediaTypeIndex
	case mediaType == "":
		mediaType = MediaTypeManifest
	case known && mediaType != declared:
		return "", invalid("declared as %.100s, says of itself %.100q", declared, mediaType)
	}
	if isList && !IsIndex(mediaType) || isImage && !IsManifest(mediaType) {
		return "", invalid("media type %.100q does not fit its fields", mediaType)
	}
	return mediaType, nil
}

// ParseManifest parses an image manifest; declared is the media type of its
// descriptor or response, or empty. The result's MediaType is set. Errors are
// errdefs.ErrInvalidArgument.
func ParseManifest(doc []byte, declared string) (*Manifest, error) {
	mediaType, err := DetectMediaType(doc, declared)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if !IsManifest(mediaType) {
		return nil, fmt.Errorf("manifest: %w", invalid("it is an index"))
	}
	var m Manifest
	if err := unmarshal(doc, MaxManifestBytes, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m.MediaType = mediaType
	if err := checkManifest(&m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return &m, nil
}

func checkManifest(m *Manifest) error {
	if len(m.Layers) > MaxLayers {
		return invalid("%d layers, more than %d", len(m.Layers), MaxLayers)
	}
	if len(m.Annotations) > maxAnnotations {
		return invalid("%d annotations, more than %d", len(m.Annotations), maxAnnotations)
	}
	if err := CheckDescriptor(m.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if IsConfig(m.Config.MediaType) && m.Config.Size > MaxConfigBytes {
		return invalid("config of %d bytes, more than %d", m.Config.Size, MaxConfigBytes)
	}
	total := m.Config.Size
	for i, l := range m.Layers {
		if err := CheckDescriptor(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if total += l.Size; total > MaxBlobBytes {
			return invalid("layers of more than %d bytes in all", int64(MaxBlobBytes))
		}
	}
	if m.Subject != nil {
		if err := CheckDescriptor(*m.Subject); err != nil {
			return fmt.Errorf("subject: %w", err)
		}
	}
	return nil
}

// ParseIndex parses an image index or Docker manifest list; declared is the
// media type of its descriptor or response, or empty. The result's MediaType is
// set. Errors are errdefs.ErrInvalidArgument.
func ParseIndex(doc []byte, declared string) (*Index, error) {
	mediaType, err := DetectMediaType(doc, declared)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if !IsIndex(mediaType) {
		return nil, fmt.Errorf("index: %w", invalid("it is a manifest"))
	}
	var x Index
	if err := unmarshal(doc, MaxManifestBytes, &x); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	x.MediaType = mediaType
	if len(x.Manifests) > MaxManifests {
		return nil, fmt.Errorf("index: %w", invalid("%d manifests, more than %d", len(x.Manifests), MaxManifests))
	}
	if len(x.Annotations) > maxAnnotations {
		return nil, fmt.Errorf("index: %w", invalid("%d annotations, more than %d", len(x.Annotations), maxAnnotations))
	}
	for i, m := range x.Manifests {
		if err := CheckDescriptor(m); err != nil {
			return nil, fmt.Errorf("index: manifest %d: %w", i, err)
		}
		if (IsManifest(m.MediaType) || IsIndex(m.MediaType)) && m.Size > MaxManifestBytes {
			return nil, fmt.Errorf("index: manifest %d: %w", i, invalid("%d bytes, more than %d", m.Size, MaxManifestBytes))
		}
	}
	return &x, nil
}

// CheckDescriptor returns an error unless d has a digest that den stores and a
// size that can be true.
func CheckDescriptor(d Descriptor) error {
	if err := CheckDigest(d.Digest); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if d.Size < 0 || d.Size > MaxBlobBytes {
		return invalid("blob %s: size %d is out of range", d.Digest, d.Size)
	}
	return nil
}

// unmarshal reads exactly one JSON value of bounded size and depth.
func unmarshal(doc []byte, maxBytes int, v any) error {
	if len(doc) > maxBytes {
		return fmt.Errorf("%w: %d bytes, more than %d: %w", ErrTooLarge, len(doc), maxBytes, errdefs.ErrInvalidArgument)
	}
	if err := checkDepth(doc); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	if err := d.Decode(v); err != nil {
		return invalid("%v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return invalid("data after the JSON document")
	}
	return nil
}

// checkDepth refuses documents nested deeper than any manifest. It looks at
// brackets outside of strings only; what is not JSON fails in the decoder.
func checkDepth(doc []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(doc); i++ {
		switch c := doc[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return invalid("nested deeper than %d", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
