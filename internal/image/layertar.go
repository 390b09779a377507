package image

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"den/internal/oci"
	"den/internal/store"
)

// A LayerTar is the uncompressed tar of a layer, made of what the store has.
type LayerTar struct {
	// DiffID is its digest, SizeBytes its length.
	DiffID    oci.Digest
	SizeBytes int64

	source *tarSource
}

// LayerTar returns the tar of a layer without fetching anything; the error is of class
// errdefs.ErrNotFound when the store has neither its tree nor a blob of it. Close it.
func (m *Images) LayerTar(ctx context.Context, l Layer) (*LayerTar, error) {
	t := &LayerTar{DiffID: l.DiffID, source: &tarSource{}}
	blob, _, ok := m.memoised(ctx, blobKey(l.DiffID, nil))
	if !ok && l.Blob != nil {
		blob, _ = m.st.Blob(ctx, l.Blob.Digest) // one that cannot be had is as good as none
	}
	if t.source.blob = blob; blob == nil {
		tree, err := m.st.Layer(ctx, l.DiffID)
		own := err == nil
		if errdefs.IsNotFound(err) {
			tree, err = m.st.KinLayer(ctx, l.DiffID)
		}
		if errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("layer %s: neither its tree nor a blob of it is here: %w", l.DiffID, errdefs.ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
		t.source.tree, t.SizeBytes = tree, tree.Meta().SizeBytes
		if l.Blob == nil && own {
			return t, nil // made by den, whose trees give back their tars
		}
	}
	n := &countingWriter{w: io.Discard, moved: func(int64) {}}
	got, err := t.source.write(ctx, n)
	if err == nil && got != l.DiffID {
		err = fmt.Errorf("layer %s: what is here of it does not give back its tar: %w: %w", l.DiffID, &oci.DigestError{Want: l.DiffID, Got: got}, errdefs.ErrNotFound)
	}
	if err != nil {
		_ = t.Close() // a lease
		return nil, err
	}
	t.SizeBytes = n.n
	return t, nil
}

// Write writes the tar to w, and says if it was not what it should be.
func (t *LayerTar) Write(ctx context.Context, w io.Writer) error {
	got, err := t.source.write(ctx, w)
	if err == nil && got != t.DiffID {
		err = fmt.Errorf("layer %s: %w", t.DiffID, &oci.DigestError{Want: t.DiffID, Got: got})
	}
	return err
}

// Close gives the layer back.
func (t *LayerTar) Close() error { return t.source.Close() }

// PutLayerTar unpacks a layer's tar from somebody who is not trusted, unless the layer
// is here. A tar that is not diffID's is an *oci.DigestError and leaves nothing. r is read
// as far as the tar goes. The caller closes the tree.
func (m *Images) PutLayerTar(ctx context.Context, diffID oci.Digest, r io.Reader) (*store.Layer, error) {
	t, err := m.st.Layer(ctx, diffID)
	if !errdefs.IsNotFound(err) {
		return t, err
	}
	return m.putTree(ctx, diffID, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}
