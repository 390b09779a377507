package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// Adopt brings a layer of a store that is not trusted into this one, and says
// what is known of it then. Its tree is never copied: a blob is hashed again
// and unpacked, and where there is none the canonical tar of the tree is
// unpacked anew. Either must give the diffID, or the error is an
// *oci.DigestError and nothing is left. The caller closes the tree. The error is
// of class errdefs.ErrNotFound when the source has nothing to make it of.
func (m *Images) Adopt(ctx context.Context, src *store.Source, l Layer) (Layer, *store.Layer, error) {
	l.Repo = "" // den fetches from nowhere because a stranger says so
	blob, desc, err := m.adoptBlob(ctx, src, l)
	if err != nil && !errdefs.IsNotFound(err) {
		return l, nil, err
	}
	l.Blob = desc
	if blob != nil {
		defer blob.Close()
	}
	t, err := m.st.Layer(ctx, l.DiffID)
	if errdefs.IsNotFound(err) {
		if blob != nil {
			t, err = m.tree(ctx, l, TreeOptions{})
		} else {
			t, err = m.adoptTree(ctx, src, l.DiffID)
		}
	} else if err == nil && blob != nil && !m.unpacksTo(ctx, blob, l.DiffID) {
		err = errors.Join(fmt.Errorf("blob %s does not unpack to it: %w", desc.Digest, errdefs.ErrDataLoss), t.Close())
	}
	if err != nil {
		return l, nil, fmt.Errorf("adopt layer %s: %w", l.DiffID, err)
	}
	l.SizeBytes = t.Meta().SizeBytes
	return l, t, nil
}

// unpacksTo reads a blob through, because a layer that is here already is not
// unpacked from it.
func (m *Images) unpacksTo(ctx context.Context, blob *store.Blob, diffID oci.Digest) bool {
	tar := tarSource{blob: blob}
	got, err := tar.write(ctx, io.Discard)
	return err == nil && got == diffID
}

// adoptBlob takes the layer's blob, by its descriptor or by a memo of the source.
func (m *Images) adoptBlob(ctx context.Context, src *store.Source, l Layer) (*store.Blob, *oci.Descriptor, error) {
	d := l.Blob
	if d == nil {
		raw, err := src.Derived(blobKey(l.DiffID, nil))
		if err != nil || json.Unmarshal(raw, &d) != nil || d == nil {
			return nil, nil, fmt.Errorf("blob of %s: %w", l.DiffID, errdefs.ErrNotFound)
		}
	}
	if oci.CheckDescriptor(*d) != nil || !oci.IsLayer(d.MediaType) {
		return nil, nil, fmt.Errorf("blob of %s: malformed descriptor: %w", l.DiffID, errdefs.ErrNotFound)
	}
	b, err := src.Take(ctx, m.st, d.Digest)
	if err != nil {
		return nil, nil, err
	}
	if b.Size() != d.Size {
		return nil, nil, errors.Join(fmt.Errorf("blob %s: it has %d bytes, not %d: %w", d.Digest, b.Size(), d.Size, errdefs.ErrNotFound), b.Close())
	}
	return b, &oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
}

// adoptTree makes the layer's canonical tar from the source's tree and unpacks it.
func (m *Images) adoptTree(ctx context.Context, src *store.Source, diffID oci.Digest) (*store.Layer, error) {
	dirs, closeAll, err := m.sourceDirs(ctx, src, diffID)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	return m.putTree(ctx, diffID, func(w io.Writer) error {
		_, err := layer.WriteTar(ctx, w, layer.WalkStack(dirs))
		return err
	})
}

// putTree unpacks the tar that write produces, which must be diffID's, and publishes the tree.
func (m *Images) putTree(ctx context.Context, diffID oci.Digest, write func(io.Writer) error) (*store.Layer, error) {
	draft, err := m.st.NewDraft(ctx)
	if err != nil {
		return nil, err
	}
	defer draft.Close()
	watch, err := draft.Watch(ctx)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(pw)
		pw.CloseWithError(err)
		written <- err
	}()
	a, err := m.apply(watch, pr, draft.FS())
	pr.CloseWithError(context.Canceled) // a writer must not wait for a reader that gave up
	if werr := <-written; werr != nil && (err == nil || !errors.Is(werr, context.Canceled)) {
		err = werr
	}
	if err := errors.Join(err, watch.Stop()); err != nil {
		return nil, err
	}
	if a.DiffID != diffID {
		return nil, fmt.Errorf("its tree is another's: %w", &oci.DigestError{Want: diffID, Got: a.DiffID})
	}
	return draft.Publish(ctx, metaOf(a))
}

// sourceDirs are the trees of a layer, top first. A delta may lie over trees
// that only this store has: it was made above it.
func (m *Images) sourceDirs(ctx context.Context, src *store.Source, diffID oci.Digest) (dirs []string, closeAll func(), err error) {
	var open leases
	closeAll = func() { _ = open.Close() } // only read
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	top, err := src.Tree(diffID)
	if err != nil {
		return nil, nil, err
	}
	open.add(top)
	dirs = []string{top.Dir}
	for _, d := range top.Over {
		t, terr := src.Tree(d)
		if terr == nil {
			open.add(t)
			dirs = append(dirs, t.Dir)
			continue
		}
		own, oerr := m.st.Layer(ctx, d)
		if oerr != nil {
			err = oerr
			return nil, nil, err
		}
		open.add(own)
		dirs = append(dirs, own.Dirs()[0])
	}
	return dirs, closeAll, nil
}
