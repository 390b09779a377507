// Package oci holds the values that every other package speaks in: digests,
// descriptors, platforms, image configurations, layer entries and mounts.
//
// It has no behaviour beyond parsing, naming and comparing, imports no other
// den package, and treats every byte it parses as hostile: documents are
// bounded in size and count. Formats: OCI image-spec v1.1 and the Docker image
// manifest v2 schema 2.
package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type (
	// Digest names bytes by their hash: "sha256:<64 hex>".
	Digest = digest.Digest
	// Descriptor is a digest with its size and media type.
	Descriptor = ocispec.Descriptor
	// Platform is an operating system and architecture.
	Platform = ocispec.Platform
	// Manifest lists an image's configuration and layers.
	Manifest = ocispec.Manifest
	// Index lists manifests, one for each platform.
	Index = ocispec.Index
	// Image is an image configuration with Docker's extensions (health check,
	// ONBUILD, SHELL).
	Image = dockerspec.DockerOCIImage
	// History is one line of an image's history.
	History = ocispec.History
)

// A DigestError reports content that is not what its name promises.
type DigestError struct {
	Want, Got Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("digest is %s, want %s", e.Got, e.Want)
}

// Copy copies r to w and returns the digest and the length of what it copied.
func Copy(w io.Writer, r io.Reader) (Digest, int64, error) {
	h := digest.Canonical.Digester()
	n, err := io.Copy(io.MultiWriter(w, h.Hash()), r)
	return h.Digest(), n, err
}

// CheckDigest returns an error unless d is a well-formed sha256 digest, the
// only algorithm that den stores.
func CheckDigest(d Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.80q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %s: algorithm %s is not supported, want sha256", d, d.Algorithm())
	}
	return nil
}

// ChainID is the identity of a stack of layers, bottom first (OCI image-spec,
// config.md, "Layer ChainID"). The empty stack has the empty ChainID.
func ChainID(diffIDs []Digest) Digest {
	var chain Digest
	for i, d := range diffIDs {
		if i == 0 {
			chain = d
			continue
		}
		chain = digest.FromString(string(chain) + " " + string(d))
	}
	return chain
}

// Entry is one member of a layer: a file, directory, link or device.
type Entry struct {
	// Path is slash-separated, clean, relative to the root and without a
	// leading slash; the root itself is ".".
	Path string
	// Mode holds the st_mode bits of stat(2): type, setuid, setgid, sticky and
	// permissions.
	Mode uint32
	UID  uint32
	GID  uint32
	// Size in bytes, for regular files.
	Size    int64
	ModTime time.Time
	// Link is the target of a symbolic link; for a hard link it is the Path
	// of the entry that it is another name of, and Hardlink is set.
	Link     string
	Hardlink bool
	// Rdev is the device number of a device node, as in stat(2).
	Rdev uint64
	// Xattrs by full name ("security.capability", "user.x").
	Xattrs map[string][]byte
	// Whiteout marks the removal of Path from the layers below.
	Whiteout bool
	// Opaque marks a directory that hides the one of the layers below.
	Opaque bool
}

// Mount is one mount of a sandbox, and the open files that have to outlive it.
type Mount struct {
	// Type is a file system type, or "bind".
	Type string
	// Source is a path, or empty.
	Source string
	// Target is a path inside the sandbox; "/" is the root file system.
	Target string
	// Options as for mount(8). An overlay lists its lower directories in
	// Lower instead.
	Options []string
	// Lower, Upper and Work are the directories of an overlay, Lower top
	// first as the kernel wants them. Without Upper the overlay is read-only.
	Lower       []string
	Upper, Work string
	// Fixed says of a bound file that nobody changes it while it is mounted, so
	// that a copy can be shown in its place.
	Fixed bool
	// Hold are leases on what the mount shows: whoever keeps the mount alive
	// keeps them open.
	Hold []*os.File
}

// ErrTooLarge reports a document above its limit.
var ErrTooLarge = errors.New("too large")
