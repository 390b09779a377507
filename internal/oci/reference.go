package oci

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// DockerHub is the domain of names that do not say where they live.
const DockerHub = "docker.io"

// maxReferenceBytes bounds what ParseReference looks at: a domain name, a
// repository of 255 bytes, a tag of 128 and a digest fit easily.
const maxReferenceBytes = 1024

// A Reference names an image: the repository it lives in and a tag, a digest
// or both of them there. It is made by ParseReference and comparable.
type Reference struct {
	// Domain is the registry's host with an optional port; "docker.io" where
	// the name did not say.
	Domain string
	// Path is the repository below Domain, "library/debian" for Docker's
	// official images.
	Path string
	// Tag may be empty if there is a Digest.
	Tag string
	// Digest is that of the manifest or index, if the reference pins it.
	Digest Digest
}

// ParseReference parses a reference as docker does: "debian" is
// docker.io/library/debian:latest. One with neither tag nor digest gets the
// tag "latest"; one with both keeps both. Errors are errdefs.ErrInvalidArgument.
func ParseReference(s string) (Reference, error) {
	r, err := ParseName(s)
	if err == nil && r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, err
}

// ParseName is ParseReference without the default tag: the name of a
// repository has neither Tag nor Digest.
func ParseName(s string) (Reference, error) {
	if len(s) > maxReferenceBytes {
		return Reference{}, fmt.Errorf("reference %.40q...: longer than %d bytes: %w", s, maxReferenceBytes, errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("reference %q: %w%s: %w", s, err, referenceHint(s), errdefs.ErrInvalidArgument)
	}
	r := Reference{Domain: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		if err := CheckDigest(r.Digest); err != nil {
			return Reference{}, fmt.Errorf("reference %q: %w: %w", s, err, errdefs.ErrInvalidArgument)
		}
	}
	return r, nil
}

// referenceHint says what is most likely wrong with s.
func referenceHint(s string) string {
	switch {
	case strings.Contains(s, "://"):
		return " (leave out the " + s[:strings.Index(s, "://")+3] + ")"
	case strings.TrimSpace(s) != s:
		return " (it begins or ends with white space)"
	}
	return ""
}

// Name is the repository in canonical form: "docker.io/library/debian".
func (r Reference) Name() string { return r.Domain + "/" + r.Path }

// String is the canonical form, which ParseReference reads back unchanged:
// "docker.io/library/debian:13" with "@sha256:..." behind it if pinned.
func (r Reference) String() string { return r.Name() + r.suffix() }

// FamiliarName is the repository as people type it: "debian".
func (r Reference) FamiliarName() string {
	if r.Domain != DockerHub {
		return r.Name()
	}
	if rest, ok := strings.CutPrefix(r.Path, "library/"); ok && !strings.Contains(rest, "/") {
		return rest
	}
	// "docker.io/library/a/b" and the like keep their path: shortened, they
	// would read back as a different one.
	return r.Path
}

// Familiar is the form that people type and docker prints: "debian:13".
func (r Reference) Familiar() string { return r.FamiliarName() + r.suffix() }

func (r Reference) suffix() string {
	var s string
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// Object is what a registry calls the manifest: the digest if there is one,
// else the tag.
func (r Reference) Object() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return r.Tag
}

// WithDigest is the reference pinned to d, without its tag.
func (r Reference) WithDigest(d Digest) Reference {
	r.Tag, r.Digest = "", d
	return r
}

// WithTag is the reference with the tag and without a digest.
func (r Reference) WithTag(tag string) (Reference, error) {
	return ParseReference(r.Name() + ":" + tag)
}
