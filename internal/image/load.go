package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/progress"
	"den/internal/store"
)

// Limits on archives of images.
const (
	maxArchiveEntries = 20000
	maxArchiveImages  = 1000
	maxArchiveLinks   = 16
)

// LoadOptions refine Load.
type LoadOptions struct {
	// Platform of which to make trees; nil is the default platform. Blobs of
	// all platforms are kept.
	Platform *oci.Platform
	// Sink is told about transfers as statuses of Vertex; nil drops them.
	Sink   progress.Sink
	Vertex oci.Digest
}

// Loaded is one image out of an archive.
type Loaded struct {
	// Name as a person types it; empty for an image without one.
	Name         string
	ConfigDigest oci.Digest
}

func (l Loaded) String() string {
	if l.Name != "" {
		return "Loaded image: " + l.Name
	}
	return "Loaded image ID: " + string(l.ConfigDigest)
}

// Load reads images from an archive, compressed or not, as docker save, skopeo,
// podman, buildah, kaniko and BuildKit write them: manifest.json and OCI
// layouts. The archive is read once and need not be seekable; what is in it
// goes straight into the store as blobs. No image gets a name before all of it
// was verified.
func (m *Images) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]Loaded, error) {
	a := &archive{m: m, files: map[string]file{}}
	defer a.held.Close()
	if err := a.read(ctx, r); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	found, err := a.images(ctx)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	loaded, err := m.adopt(ctx, found, o)
	if err != nil {
		return loaded, fmt.Errorf("load: %w", err)
	}
	return loaded, nil
}

// file is a member of an archive: a blob, or a link to another member.
type file struct {
	blob *store.Blob
	link string
}

// archive is a tar whose members were put into the store.
type archive struct {
	m     *Images
	files map[string]file
	held  leases
}

// read puts the members of the tar into the store.
func (a *archive) read(ctx context.Context, r io.Reader) error {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return err
	}
	tr := tar.NewReader(plain)
	for n := 0; ; n++ { // also of one name: each is a lease
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return plain.Close()
		}
		if err != nil {
			return fmt.Errorf("archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if n >= maxArchiveEntries {
			return fmt.Errorf("archive has more than %d members: %w", maxArchiveEntries, oci.ErrTooLarge)
		}
		if err := a.member(ctx, h, tr); err != nil {
			return fmt.Errorf("archive member %.200q: %w", h.Name, err)
		}
	}
}

// member takes one member. Names only ever are keys of a map, so that none
// can reach anything outside.
func (a *archive) member(ctx context.Context, h *tar.Header, r io.Reader) error {
	name := member(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink:
		a.files[name] = file{link: member(path.Join(path.Dir(name), h.Linkname))}
		return nil
	case tar.TypeLink:
		a.files[name] = file{link: member(h.Linkname)}
		return nil
	default:
		return nil // a directory, or nothing that an image is made of
	}
	if base := path.Base(name); path.Dir(name) != "." && (base == "json" || base == "VERSION") {
		return nil // Docker's format from before 2016, which every archive still carries beside the new one
	}
	b, err := a.put(ctx, name, h.Size, r)
	if err != nil {
		return err
	}
	a.held.add(b)
	a.files[name] = file{blob: b}
	return nil
}

func (a *archive) put(ctx context.Context, name string, size int64, r io.Reader) (*store.Blob, error) {
	if size > oci.MaxBlobBytes {
		return nil, fmt.Errorf("%d bytes: %w", size, oci.ErrTooLarge)
	}
	// What the store has already, it has verified: the body can be skipped.
	if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
		if d := oci.Digest("sha256:" + hex); oci.CheckDigest(d) == nil {
			if b, err := a.m.st.Blob(ctx, d); err == nil {
				return b, nil
			}
		}
	}
	b, err := a.m.st.PutBlob(ctx, r)
	if err != nil {
		return nil, err
	}
	if b.Size() != size {
		return nil, errors.Join(io.ErrUnexpectedEOF, b.Close())
	}
	return b, nil
}

// member is the key of a member's name.
func member(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// open returns the blob that a member is, links followed.
func (a *archive) open(name string) (*store.Blob, error) {
	key := member(name)
	for range maxArchiveLinks {
		f, ok := a.files[key]
		if !ok {
			return nil, fmt.Errorf("archive has no member %.200q: %w", name, errdefs.ErrNotFound)
		}
		if f.blob != nil {
			return f.blob, nil
		}
		key = f.link
	}
	return nil, fmt.Errorf("archive member %.200q: too many links: %w", name, errdefs.ErrInvalidArgument)
}

// document reads a member that is a JSON document.
func (a *archive) document(name string, limit int64) ([]byte, error) {
	b, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if b.Size() > limit {
		return nil, fmt.Errorf("archive member %.200q of %d bytes: %w", name, b.Size(), oci.ErrTooLarge)
	}
	raw := make([]byte, b.Size())
	if _, err := io.ReadFull(b.Reader(), raw); err != nil {
		return nil, fmt.Errorf("archive member %.200q: %w", name, err)
	}
	return raw, nil
}

// blob returns the member that an OCI layout keeps a digest in.
func (a *archive) blob(d oci.Digest) (*store.Blob, error) {
	if err := oci.CheckDigest(d); err != nil {
		return nil, err
	}
	b, err := a.open(blobPath(d))
	if err != nil {
		return nil, err
	}
	if b.Digest() != d {
		return nil, &oci.DigestError{Want: d, Got: b.Digest()}
	}
	return b, nil
}
