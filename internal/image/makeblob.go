package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"den/internal/failpoint"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// blobKey names the memo of a layer's blob in one compression; without a
// compression, that of any blob of the layer.
func blobKey(diffID oci.Digest, f *Format) string {
	if f == nil {
		return fmt.Sprintf("image/blob/%s", diffID)
	}
	return fmt.Sprintf("image/blob/%s/%s/%d", diffID, f.compression(), f.Level)
}

// memoised returns the blob that a memo names, if it is still here.
func (m *Images) memoised(ctx context.Context, key string) (*store.Blob, oci.Descriptor, bool) {
	raw, err := m.st.Derived(key)
	if err != nil {
		return nil, oci.Descriptor{}, false
	}
	var d oci.Descriptor
	if json.Unmarshal(raw, &d) != nil || oci.CheckDescriptor(d) != nil || !oci.IsLayer(d.MediaType) {
		return nil, oci.Descriptor{}, false
	}
	b, err := m.st.Blob(ctx, d.Digest)
	if err != nil {
		return nil, oci.Descriptor{}, false
	}
	if b.Size() != d.Size {
		b.Close()
		return nil, oci.Descriptor{}, false
	}
	return b, d, true
}

// memoise notes a layer's blob. A lost memo costs one compression, so that it
// cannot be written is no error.
func (m *Images) memoise(key string, d oci.Descriptor) {
	if raw, err := json.Marshal(d); err == nil {
		_ = m.st.PutDerived(key, raw)
	}
}

// madeOf returns a blob of the layer that is in the store, of whatever
// compression.
func (m *Images) madeOf(ctx context.Context, diffID oci.Digest) (oci.Descriptor, bool) {
	b, d, ok := m.memoised(ctx, blobKey(diffID, nil))
	if ok {
		b.Close()
	}
	return d, ok
}

// makeBlob returns the blob of a layer in a compression, made at the first
// call by whichever process comes first.
func (m *Images) makeBlob(ctx context.Context, l Layer, f Format) (*store.Blob, oci.Descriptor, error) {
	key := blobKey(l.DiffID, &f)
	if b, d, ok := m.memoised(ctx, key); ok {
		return b, d, nil
	}
	s := newStatus(f.Sink, f.Vertex, l.DiffID)
	s.phase("Waiting", 0)
	w, err := m.st.Work(ctx, "blob", key, nil)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	defer w.Done()
	if b, d, ok := m.memoised(ctx, key); ok {
		s.done("Already compressed")
		return b, d, nil
	}
	tar, err := m.tarOf(ctx, l)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	defer tar.Close()
	leave, err := take(ctx, m.cpus)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	defer leave()
	s.phase("Compressing", tar.sizeBytes)
	b, err := m.compress(ctx, l, f, tar, func(n int64) { s.at(n); w.Bump() })
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	mediaType, err := oci.LayerMediaType(oci.MediaTypeManifest, f.compression())
	if err != nil {
		return nil, oci.Descriptor{}, errors.Join(err, b.Close())
	}
	d := oci.Descriptor{MediaType: mediaType, Digest: b.Digest(), Size: b.Size()}
	m.memoise(key, d)
	m.memoise(blobKey(l.DiffID, nil), d)
	s.done("Compressed")
	return b, d, nil
}

// compress streams a layer's tar through a compressor into the store.
func (m *Images) compress(ctx context.Context, l Layer, f Format, tar *tarSource, moved func(int64)) (*store.Blob, error) {
	pr, pw := io.Pipe()
	go func() {
		got, err := tar.writeCompressed(ctx, pw, f, moved)
		if err == nil && got != l.DiffID {
			err = fmt.Errorf("its tree does not give back the tar that it was made from, pull the image again: %w: %w",
				&oci.DigestError{Want: l.DiffID, Got: got}, errdefs.ErrNotFound)
		}
		pw.CloseWithError(err)
	}()
	b, err := m.st.PutBlob(ctx, pr)
	pr.CloseWithError(context.Canceled) // the writer may still be there if the store gave up
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("image.blob.put"); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// tarSource writes a layer's tar: from a blob of it, or from its tree.
type tarSource struct {
	sizeBytes int64
	blob      *store.Blob
	tree      *store.Layer
}

func (t *tarSource) Close() error {
	if t.blob != nil {
		return t.blob.Close()
	}
	return t.tree.Close()
}

// tarOf finds what the layer's tar can be made of.
func (m *Images) tarOf(ctx context.Context, l Layer) (*tarSource, error) {
	t := &tarSource{sizeBytes: l.SizeBytes}
	if l.Blob != nil {
		if b, err := m.st.Blob(ctx, l.Blob.Digest); err == nil {
			t.blob = b
			return t, nil
		}
	}
	if b, _, ok := m.memoised(ctx, blobKey(l.DiffID, nil)); ok {
		t.blob = b
		return t, nil
	}
	tree, err := m.anyTree(ctx, l.DiffID)
	if err == nil {
		t.tree, t.sizeBytes = tree, tree.Meta().SizeBytes
		return t, nil
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	src, err := m.sourceOf(ctx, l)
	if err != nil {
		return nil, err
	}
	t.blob, err = m.download(ctx, src, newStatus(nil, "", src.desc.Digest))
	if err != nil {
		return nil, err
	}
	return t, nil
}

// download brings a layer's blob into the store.
func (m *Images) download(ctx context.Context, src source, s *status) (*store.Blob, error) {
	leave, err := take(ctx, m.slots)
	if err != nil {
		return nil, err
	}
	defer leave()
	b, err := m.ingest(ctx, src, nil, s, func() {})
	if err != nil {
		return nil, err
	}
	if err := m.check(ctx, b, src.diffID); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	s.done("Download complete")
	return b, nil
}

// writeCompressed writes the compressed tar to w and returns the tar's digest.
func (t *tarSource) writeCompressed(ctx context.Context, w io.Writer, f Format, moved func(int64)) (oci.Digest, error) {
	z, err := layer.Compress(w, f.codec(), f.level())
	if err != nil {
		return "", err
	}
	d, err := t.write(ctx, &countingWriter{w: z, moved: moved})
	return d, errors.Join(err, z.Close())
}

// write writes the tar to w and returns its digest.
func (t *tarSource) write(ctx context.Context, w io.Writer) (oci.Digest, error) {
	if t.blob == nil {
		a, err := layer.WriteTar(ctx, w, layer.WalkStack(t.tree.Dirs()))
		return a.DiffID, err
	}
	r, _, err := layer.Decompress(t.blob.Reader())
	if err != nil {
		return "", err
	}
	d, _, err := oci.Copy(w, io.LimitReader(r, oci.MaxBlobBytes))
	return d, errors.Join(err, r.Close(), ctx.Err())
}

// countingWriter tells moved how much went through it.
type countingWriter struct {
	w     io.Writer
	n     int64
	moved func(int64)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.moved(c.n)
	return n, err
}
