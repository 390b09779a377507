package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// Rewrite gives the layers above the base new blobs in which no file is
// younger than r.Epoch (rewrite-timestamp), and returns r with them, for
// Assemble. The blobs are kept from the collector until the Closer is closed.
// Where nothing was younger the layer stays as it is.
func (m *Images) Rewrite(ctx context.Context, r Result, f Format) (Result, io.Closer, error) {
	held := &leases{}
	if r.Epoch == nil {
		return r, held, fmt.Errorf("rewrite timestamps: no SOURCE_DATE_EPOCH is set: %w", errdefs.ErrInvalidArgument)
	}
	out := r
	out.Layers = append([]Layer(nil), r.Layers...)
	kept := make([]leases, len(r.Layers))
	g, gctx := errgroup.WithContext(ctx)
	for i := ownLayers(r); i < len(r.Layers); i++ {
		g.Go(func() error {
			l, err := m.rewritten(gctx, r.Layers[i], *r.Epoch, f, &kept[i])
			if err != nil {
				return fmt.Errorf("rewrite timestamps: layer %s: %w", r.Layers[i].DiffID, err)
			}
			out.Layers[i] = l
			return nil
		})
	}
	err := g.Wait()
	for _, k := range kept {
		*held = append(*held, k...)
	}
	if err != nil {
		return r, &leases{}, errors.Join(err, held.Close())
	}
	return out, held, nil
}

// ownLayers is the index of the first layer that is not the base image's.
func ownLayers(r Result) int {
	base, err := parseConfig(r.Base)
	if len(r.Base) == 0 || err != nil {
		return 0
	}
	n := 0
	for n < len(r.Layers) && n < len(base.RootFS.DiffIDs) && r.Layers[n].DiffID == base.RootFS.DiffIDs[n] {
		n++
	}
	return n
}

// rewriteMemo is what became of a layer.
type rewriteMemo struct {
	Layer Layer `json:"layer"`
}

// rewritten returns the layer with no time after epoch, made at the first
// call.
func (m *Images) rewritten(ctx context.Context, l Layer, epoch time.Time, f Format, held *leases) (Layer, error) {
	key := fmt.Sprintf("image/rewrite/%s/%d/%s/%d", l.DiffID, epoch.Unix(), f.compression(), f.Level)
	if out, ok := m.rewrittenBefore(ctx, key, held); ok {
		return out, nil
	}
	w, err := m.st.Work(ctx, "rewrite", key, nil)
	if err != nil {
		return Layer{}, err
	}
	defer w.Done()
	if out, ok := m.rewrittenBefore(ctx, key, held); ok {
		return out, nil
	}
	trees, err := m.Trees(ctx, []Layer{l}, TreeOptions{Sink: f.Sink, Vertex: f.Vertex})
	if err != nil {
		return Layer{}, err
	}
	defer closeTrees(trees)
	leave, err := take(ctx, m.cpus)
	if err != nil {
		return Layer{}, err
	}
	defer leave()
	out, b, err := m.clamp(ctx, trees[0], epoch, f, w.Bump)
	if err != nil {
		return Layer{}, err
	}
	held.add(b)
	out.Created = earlier(l.Created, epoch)
	m.memoise(blobKey(out.DiffID, &f), *out.Blob)
	m.memoise(blobKey(out.DiffID, nil), *out.Blob)
	if raw, err := json.Marshal(rewriteMemo{out}); err == nil {
		_ = m.st.PutDerived(key, raw)
	}
	return out, nil
}

func (m *Images) rewrittenBefore(ctx context.Context, key string, held *leases) (Layer, bool) {
	raw, err := m.st.Derived(key)
	if err != nil {
		return Layer{}, false
	}
	var memo rewriteMemo
	if json.Unmarshal(raw, &memo) != nil || memo.Layer.Blob == nil || oci.CheckDigest(memo.Layer.DiffID) != nil {
		return Layer{}, false
	}
	b, err := m.st.Blob(ctx, memo.Layer.Blob.Digest)
	if err != nil {
		return Layer{}, false
	}
	held.add(b)
	return memo.Layer, true
}

// clamp writes the canonical tar of a tree, with its times clamped, as a blob.
func (m *Images) clamp(ctx context.Context, t *store.Layer, epoch time.Time, f Format, alive func()) (Layer, *store.Blob, error) {
	type outcome struct {
		a   layer.Applied
		err error
	}
	done := make(chan outcome, 1)
	pr, pw := io.Pipe()
	go func() {
		a, err := writeClamped(ctx, &countingWriter{w: pw, moved: func(int64) { alive() }}, t, epoch, f)
		pw.CloseWithError(err)
		done <- outcome{a, err}
	}()
	b, err := m.st.PutBlob(ctx, pr)
	pr.CloseWithError(context.Canceled) // the writer may still be there if the store gave up
	out := <-done
	if err != nil {
		return Layer{}, nil, err
	}
	if out.err != nil {
		return Layer{}, nil, errors.Join(out.err, b.Close())
	}
	mediaType, err := oci.LayerMediaType(oci.MediaTypeManifest, f.compression())
	if err != nil {
		return Layer{}, nil, errors.Join(err, b.Close())
	}
	blob := oci.Descriptor{MediaType: mediaType, Digest: b.Digest(), Size: b.Size()}
	return Layer{DiffID: out.a.DiffID, SizeBytes: out.a.SizeBytes, Blob: &blob}, b, nil
}

func writeClamped(ctx context.Context, w io.Writer, t *store.Layer, epoch time.Time, f Format) (layer.Applied, error) {
	z, err := layer.Compress(w, f.codec(), f.level())
	if err != nil {
		return layer.Applied{}, err
	}
	a, err := layer.WriteTar(ctx, z, clamped(layer.WalkStack(t.Dirs()), epoch))
	return a, release(err, z)
}

// clamped lets no file be younger than epoch.
func clamped(files iter.Seq2[layer.File, error], epoch time.Time) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		for f, err := range files {
			if f.ModTime.After(epoch) {
				f.ModTime = epoch
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

func earlier(t *time.Time, epoch time.Time) *time.Time {
	if t == nil || t.After(epoch) {
		return &epoch
	}
	return t
}
