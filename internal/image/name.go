package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/oci"
)

// anchoredID matches a configuration digest or the beginning of its
// hexadecimal part, as Docker's users type it.
var anchoredID = regexp.MustCompile(`^(?:sha256:)?[0-9a-f]{1,64}$`)

// parseTag parses a name that is given to an image, which cannot have a
// digest.
func parseTag(name string) (oci.Reference, error) {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return oci.Reference{}, err
	}
	if ref.Digest != "" {
		return oci.Reference{}, fmt.Errorf("reference %q: a name cannot be given by digest: %w", name, errdefs.ErrInvalidArgument)
	}
	return ref, nil
}

// familiar shortens a stored name to what a person types.
func familiar(canonical string) string {
	if untagged(canonical) {
		return canonical
	}
	ref, err := oci.ParseReference(canonical)
	if err != nil {
		return canonical
	}
	return ref.Familiar()
}

// untagged reports whether a stored name is a configuration digest, the name
// of an image that lost or never had a tag.
func untagged(name string) bool { return strings.HasPrefix(name, "sha256:") }

// shortID is the part of a digest that docker shows.
func shortID(d oci.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}
