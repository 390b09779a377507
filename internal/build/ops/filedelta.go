package ops

import (
	"context"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

const (
	// deltaMaxBelow bounds the trees that one layer is stacked on: each makes
	// every later mount and lookup a little dearer.
	deltaMaxBelow = 4
	// deltaMinEntries is the size from which a layer is worth remembering.
	deltaMinEntries = 256
	// deltaMaxShare is the part of a layer, as its inverse, up to which it is
	// made as a delta.
	deltaMaxShare = 4
)

// deltaName is where the manifest of the layer of action n is remembered: by
// what the op does, to what, and from which directories. It is only a hint
// where to look for a layer with the same files.
func (r *fileRun) deltaName(ctx context.Context, s *fileState) (string, error) {
	cm, err := r.CacheMap(ctx, nil)
	if err != nil {
		return "", err
	}
	base := oci.Digest("")
	if s.base != nil {
		base = s.base.ID()
	}
	var dirs []string
	for _, ref := range r.refs {
		if ref == nil {
			continue
		}
		if t, ok := ref.Local().(*localTree); ok {
			dirs = append(dirs, t.dir)
		}
	}
	d, err := jsonDigest([]any{cm.Digest, r.number(s), base, dirs})
	return "layer-manifest/" + string(d), err
}

// number is that of the action which made s.
func (r *fileRun) number(s *fileState) int64 {
	for n, other := range r.states {
		if other == s {
			return n
		}
	}
	return -1
}

// earlier returns the layer that m's action made last time, and its manifest,
// or nil.
func (r *fileRun) earlier(ctx context.Context, name string) (*store.Layer, *fileManifest) {
	dt, err := r.env.Store.Derived(name)
	if err != nil {
		return nil, nil
	}
	m := parseFileManifest(dt)
	if m == nil {
		return nil, nil
	}
	l, err := r.env.Store.Layer(ctx, m.diffID)
	if err != nil {
		return nil, nil // gone, or not to be had: the layer is made whole
	}
	return l, m
}

// layerOf makes the layer of s's tree, as a delta on an earlier one where that
// is less work.
func (r *fileRun) layerOf(ctx context.Context, s *fileState) (*store.Layer, error) {
	m := s.tree.manifest()
	if m == nil || len(m.entries) < deltaMinEntries {
		return r.whole(ctx, s)
	}
	name, err := r.deltaName(ctx, s)
	if err != nil {
		return nil, err
	}
	l, err := r.delta(ctx, s, m, name)
	if err == nil && l == nil {
		l, err = r.whole(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	m.diffID = l.DiffID()
	_ = r.env.Store.PutDerived(name, m.encode()) // only a memo
	return l, nil
}

// whole makes the layer in one tree.
func (r *fileRun) whole(ctx context.Context, s *fileState) (*store.Layer, error) {
	draft, err := r.draftOf(ctx, s.place)
	if err != nil {
		return nil, err
	}
	built, err := layer.Build(ctx, draft.FS(), s.tree.files(), r.env.buildOptions())
	if err == nil {
		err = r.finish(s)
	}
	if err != nil {
		return nil, err
	}
	return draft.Publish(ctx, appliedMeta(built))
}

// delta makes the layer as what differs from an earlier one, stacked on that.
// It returns nil if there is none that would do.
func (r *fileRun) delta(ctx context.Context, s *fileState, m *fileManifest, name string) (_ *store.Layer, err error) {
	earlier, was := r.earlier(ctx, name)
	if earlier == nil {
		return nil, nil
	}
	change := m.since(was)
	below := append([]oci.Digest{earlier.DiffID()}, earlier.Meta().Over...)
	switch {
	case change != nil && change.count == 0:
		return earlier, nil
	case change == nil, change.count*deltaMaxShare > len(m.entries), len(below) > deltaMaxBelow:
		return nil, earlier.Close()
	}
	r.closers = append(r.closers, earlier.Close)
	draft, err := r.draftOf(ctx, s.place)
	if err != nil {
		return nil, err
	}
	built, made, err := r.stack(ctx, s.tree, change, draft.FS())
	if err == nil {
		err = r.finish(s)
	}
	if err != nil {
		return nil, err
	}
	meta := appliedMeta(built)
	meta.TreeBytes, meta.Over = made, below
	l, err := draft.Publish(ctx, meta)
	if errdefs.IsNotFound(err) {
		// A tree below was collected before it was leased. The draft is not
		// empty any more.
		s.place.draft = nil
		return nil, nil
	}
	return l, err
}

// stack makes what changed in dir, and computes what the whole layer is at the
// same time. It returns also the bytes of the files it made.
func (r *fileRun) stack(ctx context.Context, t *fileTree, c *manifestChange, dir string) (layer.Applied, int64, error) {
	var all layer.Applied
	var made int64
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		all, err = layer.WriteTar(ctx, io.Discard, t.files())
		return err
	})
	g.Go(func() error {
		return layer.Create(ctx, dir, changedFiles(t, c, &made), r.env.buildOptions())
	})
	err := g.Wait()
	return all, made, err
}

// changedFiles lists the entries of a delta.
func changedFiles(t *fileTree, c *manifestChange, bytes *int64) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		w := fileWalk{first: map[*fileInode]string{}}
		w.yield = func(f layer.File, err error) bool {
			if !c.paths[f.Path] {
				return true
			}
			// What it is stacked on must show through.
			f.Opaque = f.Opaque && c.added[f.Path]
			*bytes += f.Size
			return yield(f, err)
		}
		w.children(t.root, ".")
	}
}
