package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/failpoint"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// pipeBytes is how far a download may run ahead of its unpacking.
const pipeBytes = 256 << 10

// Trees returns the trees of layers, bottom first, each a lease until closed.
// What is missing is downloaded, verified and unpacked while it arrives, layers
// beside each other; of several processes that need a layer one does the work.
func (m *Images) Trees(ctx context.Context, layers []Layer, o TreeOptions) ([]*store.Layer, error) {
	if err := checkLayers(layers); err != nil {
		return nil, err
	}
	trees := make([]*store.Layer, len(layers))
	missing := 0
	for i, l := range layers {
		t, err := m.st.Layer(ctx, l.DiffID)
		switch {
		case err == nil:
			trees[i] = t
		case errdefs.IsNotFound(err):
			missing++
		default:
			return nil, errors.Join(err, closeTrees(trees))
		}
	}
	if missing == 0 {
		return trees, nil
	}
	if m.o.NoTrees != nil {
		return nil, errors.Join(m.o.NoTrees, closeTrees(trees))
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, l := range layers {
		if trees[i] != nil {
			continue
		}
		g.Go(func() error {
			t, err := m.tree(gctx, l, o)
			trees[i] = t
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(err, closeTrees(trees))
	}
	return trees, nil
}

func closeTrees(trees []*store.Layer) error {
	var errs []error
	for _, t := range trees {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}

// tree returns the tree of one layer, made if need be.
func (m *Images) tree(ctx context.Context, l Layer, o TreeOptions) (*store.Layer, error) {
	s := newStatus(o.Sink, o.Vertex, nameOf(l))
	s.phase("Waiting", 0)
	w, err := m.st.Work(ctx, "layer", m.st.LayerID(l.DiffID), nil)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	defer w.Done()
	t, err := m.st.Layer(ctx, l.DiffID)
	if err == nil {
		s.done("Already exists")
		return t, nil
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	leave, err := take(ctx, m.slots)
	if err != nil {
		return nil, err
	}
	defer leave()
	err = m.st.RetryFull(ctx, func() error {
		t, err = m.unpack(ctx, l, s, w.Bump)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	s.done("Pull complete")
	return t, nil
}

// nameOf is the digest that a person sees for a layer.
func nameOf(l Layer) oci.Digest {
	if l.Blob != nil {
		return l.Blob.Digest
	}
	return l.DiffID
}

// unpack makes the tree of a layer from its blob, which is fetched if it is
// not here.
func (m *Images) unpack(ctx context.Context, l Layer, s *status, alive func()) (*store.Layer, error) {
	src, err := m.sourceOf(ctx, l)
	if errdefs.IsNotFound(err) {
		if t, kerr := m.ofKin(ctx, l); kerr == nil {
			return t, nil
		} else if !errdefs.IsNotFound(kerr) {
			err = fmt.Errorf("%w (it is here in another form, which is of no use: %v)", err, kerr)
		}
	}
	if err != nil {
		return nil, err
	}
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
	var fetched atomic.Bool
	in := &counter{Reader: bufio.NewReaderSize(pr, pipeBytes), moved: func(n int64) {
		alive()
		if fetched.Load() {
			s.phase("Extracting", src.desc.Size)
			s.at(n)
		}
	}}
	type outcome struct {
		applied layer.Applied
		err     error
	}
	unpacked := make(chan outcome, 1)
	go func() {
		a, err := m.apply(watch, in, draft.FS())
		err = errors.Join(err, watch.Stop())
		pr.CloseWithError(err) // a writer must not wait for a reader that gave up
		unpacked <- outcome{a, err}
	}()
	blob, err := m.ingest(ctx, src, pw, s, alive)
	fetched.Store(true)
	pw.CloseWithError(err)
	out := <-unpacked
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	if out.err != nil {
		return nil, out.err
	}
	m.noteDiffID(src.desc.Digest, out.applied.DiffID)
	if out.applied.DiffID != l.DiffID {
		return nil, errForeign(src.desc.Digest, l.DiffID, out.applied.DiffID)
	}
	if err := failpoint.Hit("image.unpack.publish"); err != nil {
		return nil, err
	}
	return draft.Publish(ctx, metaOf(out.applied))
}

// anyTree is the tree of a layer in whatever form it is here: to be read and to be kept,
// not to be shown to a step.
func (m *Images) anyTree(ctx context.Context, diffID oci.Digest) (*store.Layer, error) {
	t, err := m.st.Layer(ctx, diffID)
	if errdefs.IsNotFound(err) {
		if kin, kerr := m.st.KinLayer(ctx, diffID); kerr == nil {
			return kin, nil
		}
	}
	return t, err
}

// ofKin makes the tree of a layer from the one that a den on another rung made. That it
// is the same is known by its digest: a tree that this process may not read in whole, or whose
// tar was not den's, does not give it back.
func (m *Images) ofKin(ctx context.Context, l Layer) (_ *store.Layer, err error) {
	tree, err := m.st.KinLayer(ctx, l.DiffID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	return m.putTree(ctx, l.DiffID, func(w io.Writer) error {
		_, err := layer.WriteTar(ctx, w, layer.WalkStack(tree.Dirs()))
		return err
	})
}

func metaOf(a layer.Applied) store.LayerMeta {
	return store.LayerMeta{DiffID: a.DiffID, SizeBytes: a.SizeBytes, TreeBytes: a.TreeBytes, Entries: a.Entries}
}

// treeOptions are those of trees of this store.
func (m *Images) treeOptions() layer.UnpackOptions {
	return layer.UnpackOptions{InUserns: m.o.InUserns, Image: m.st.ImageForm()}
}

// apply unpacks a layer's blob into the tree dir, and reads it to its end.
func (m *Images) apply(watch *store.Watch, blob io.Reader, dir string) (layer.Applied, error) {
	r, _, err := layer.Decompress(blob)
	if err != nil {
		return layer.Applied{}, err
	}
	a, err := layer.Unpack(watch.Context(), watch.Paced(r), dir, m.treeOptions())
	if err := errors.Join(err, r.Close()); err != nil {
		return layer.Applied{}, err
	}
	_, err = io.Copy(io.Discard, blob)
	return a, err
}

// source says where the bytes of a layer come from.
type source struct {
	desc   oci.Descriptor
	repo   string     // has them; empty: only the store does
	diffID oci.Digest // of the layer that they are
	here   bool       // the store had them when they were looked for
}

// sourceOf finds a blob of the layer: the one it was pulled as, here or in
// its repository, or one that was made of it here.
func (m *Images) sourceOf(ctx context.Context, l Layer) (source, error) {
	if l.Blob != nil {
		if l.Repo != "" && m.reg != nil {
			return source{desc: *l.Blob, repo: l.Repo, diffID: l.DiffID}, nil // the store asks only for what it lacks
		}
		if m.hasBlob(ctx, l.Blob.Digest) {
			return source{desc: *l.Blob, diffID: l.DiffID, here: true}, nil
		}
	}
	if desc, ok := m.madeOf(ctx, l.DiffID); ok {
		return source{desc: desc, diffID: l.DiffID, here: true}, nil
	}
	return source{}, fmt.Errorf("it is not in the store and nothing says where it came from, build or pull the image again: %w",
		errdefs.ErrNotFound)
}

func (m *Images) hasBlob(ctx context.Context, d oci.Digest) bool {
	b, err := m.st.Blob(ctx, d)
	if err != nil {
		return false
	}
	b.Close()
	return true
}

// ingest brings a blob into the store and copies its bytes to tee, if that is
// not nil. The caller holds a slot.
func (m *Images) ingest(ctx context.Context, src source, tee io.Writer, s *status, alive func()) (*store.Blob, error) {
	return m.st.Ingest(ctx, store.Ingest{
		Digest:    src.desc.Digest,
		SizeBytes: src.desc.Size,
		Tee:       tee,
		Fetch: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			if src.repo == "" {
				return nil, fmt.Errorf("blob %s: it went away: %w", src.desc.Digest, errdefs.ErrNotFound)
			}
			if err := m.online(); err != nil {
				return nil, err
			}
			s.phase("Downloading", src.desc.Size)
			return m.reg.Blob(ctx, src.repo, src.desc, offset)
		},
		Moved: func(n int64) {
			alive()
			s.at(n)
		},
	})
}
