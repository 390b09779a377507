package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// diffIDKey names the memo of the diffID that a layer's blob has.
func diffIDKey(blob oci.Digest) string { return "image/diffid/" + string(blob) }

// noteDiffID remembers what a blob unpacks to. A lost memo costs one reading.
func (m *Images) noteDiffID(blob, diffID oci.Digest) {
	_ = m.st.PutDerived(diffIDKey(blob), []byte(diffID))
}

// errForeign is a blob that its image's configuration does not know.
func errForeign(blob, want, got oci.Digest) error {
	return fmt.Errorf("blob %s does not belong to the image's configuration: %w: %w",
		blob, &oci.DigestError{Want: want, Got: got}, errdefs.ErrInvalidArgument)
}

// check makes sure that a blob is the layer that a configuration says it is.
// Unpacking tells, but whose tree is here already is not unpacked, and neither
// is a layer of another platform.
func (m *Images) check(ctx context.Context, b *store.Blob, diffID oci.Digest) error {
	got, err := m.diffIDOf(ctx, b)
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.Digest(), err)
	}
	if got != diffID {
		return errForeign(b.Digest(), diffID, got)
	}
	return nil
}

// diffIDOf reads a blob through, once in its life.
func (m *Images) diffIDOf(ctx context.Context, b *store.Blob) (oci.Digest, error) {
	if raw, err := m.st.Derived(diffIDKey(b.Digest())); err == nil {
		if d := oci.Digest(raw); oci.CheckDigest(d) == nil {
			return d, nil
		}
	}
	r, _, err := layer.Decompress(b.Reader())
	if err != nil {
		return "", err
	}
	d, n, err := oci.Copy(io.Discard, io.LimitReader(stopped{ctx, r}, oci.MaxBlobBytes+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return "", err
	}
	if n > oci.MaxBlobBytes {
		return "", fmt.Errorf("more than %d bytes unpacked: %w", int64(oci.MaxBlobBytes), oci.ErrTooLarge)
	}
	m.noteDiffID(b.Digest(), d)
	return d, nil
}

// checkHere checks those blobs of an image that are in the store.
func (m *Images) checkHere(ctx context.Context, img *Image) error {
	for _, l := range img.Layers {
		if l.Blob == nil {
			continue
		}
		b, err := m.st.Blob(ctx, l.Blob.Digest)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(m.check(ctx, b, l.DiffID), b.Close()); err != nil {
			return fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
	}
	return nil
}

// stopped is a reader that ends with ctx; it lives as long as one reading.
type stopped struct {
	ctx context.Context
	r   io.Reader
}

func (s stopped) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}
