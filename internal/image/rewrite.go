package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
)

// A Rewriting says what Rewrite changes in the layers above the base.
type Rewriting struct {
	// Epoch bounds the times of files; nil leaves them.
	Epoch *time.Time
	// Drop are paths from the root that are left out, with all below.
	Drop []string
	// Squash makes one layer of them. All takes the base's layers in too, also
	// for Epoch and Drop.
	Squash, All bool
}

func (w Rewriting) changes() bool { return w.Epoch != nil || len(w.Drop) > 0 || w.Squash }

// key names what is changed, for memos.
func (w Rewriting) key() string {
	key := "-"
	if w.Epoch != nil {
		key = strconv.FormatInt(w.Epoch.Unix(), 10)
	}
	if len(w.Drop) > 0 || w.All {
		key += "/" + digest.FromString(fmt.Sprintf("%q %t", w.Drop, w.All)).Encoded()
	}
	return key
}

// Rewrite gives the layers above the base new blobs, and returns r with them, for
// Assemble. The blobs are kept from the collector until the Closer is closed.
// Where nothing is changed the layer stays as it is.
func (m *Images) Rewrite(ctx context.Context, r Result, w Rewriting, f Format) (Result, io.Closer, error) {
	held := &leases{}
	first := 0
	if !w.All {
		first = ownLayers(r)
	}
	if !w.changes() || first == len(r.Layers) {
		return r, held, nil
	}
	var stacks [][]Layer
	for _, l := range r.Layers[first:] {
		if w.Squash && len(stacks) > 0 {
			stacks[0] = append(stacks[0], l)
			continue
		}
		stacks = append(stacks, []Layer{l})
	}
	out := r
	out.Layers = append(append([]Layer(nil), r.Layers[:first]...), make([]Layer, len(stacks))...)
	kept := make([]leases, len(stacks))
	g, gctx := errgroup.WithContext(ctx)
	for i, stack := range stacks {
		g.Go(func() error {
			l, err := m.rewritten(gctx, stack, w, f, &kept[i])
			if err != nil {
				return fmt.Errorf("rewrite layer %s: %w", stack[0].DiffID, err)
			}
			out.Layers[first+i] = l
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

// rewritten returns the layer that a stack of them becomes, made at the first
// call.
func (m *Images) rewritten(ctx context.Context, stack []Layer, r Rewriting, f Format, held *leases) (Layer, error) {
	ids := (&Image{Layers: stack}).DiffIDs()
	key := fmt.Sprintf("image/rewrite/%s/%s/%s/%d", digest.FromString(fmt.Sprint(ids)), r.key(), f.compression(), f.Level)
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
	trees, err := m.Trees(ctx, stack, TreeOptions{Sink: f.Sink, Vertex: f.Vertex})
	if err != nil {
		return Layer{}, err
	}
	defer closeTrees(trees)
	leave, err := take(ctx, m.cpus)
	if err != nil {
		return Layer{}, err
	}
	defer leave()
	var dirs []string
	for i := len(trees) - 1; i >= 0; i-- {
		dirs = append(dirs, trees[i].Dirs()...)
	}
	out, b, err := m.write(ctx, r.files(layer.WalkStack(dirs)), f, w.Bump)
	if err != nil {
		return Layer{}, err
	}
	held.add(b)
	out.Created = stack[len(stack)-1].Created
	if r.Epoch != nil {
		out.Created = earlier(out.Created, *r.Epoch)
	}
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

// write makes a blob of the canonical tar of files.
func (m *Images) write(ctx context.Context, files iter.Seq2[layer.File, error], f Format, alive func()) (Layer, *store.Blob, error) {
	type outcome struct {
		a   layer.Applied
		err error
	}
	done := make(chan outcome, 1)
	pr, pw := io.Pipe()
	go func() {
		a, err := writeFiles(ctx, &countingWriter{w: pw, moved: func(int64) { alive() }}, files, f)
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

func writeFiles(ctx context.Context, w io.Writer, files iter.Seq2[layer.File, error], f Format) (layer.Applied, error) {
	z, err := layer.Compress(w, f.codec(), f.level())
	if err != nil {
		return layer.Applied{}, err
	}
	a, err := layer.WriteTar(ctx, z, files)
	return a, release(err, z)
}

// files changes a layer's files on their way.
func (w Rewriting) files(files iter.Seq2[layer.File, error]) iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		dropped := map[string]layer.File{} // with other names that may stay
		renamed := map[string]string{}     // of those, the first name that stayed
		for f, err := range files {
			switch {
			case err != nil:
			case w.drops(f.Path):
				if !f.Hardlink {
					dropped[f.Path] = f
				}
				continue
			case w.All && f.Whiteout:
				continue // nothing is below
			case f.Hardlink:
				first, gone := dropped[f.Link]
				if name, ok := renamed[f.Link]; ok {
					f.Link = name
				} else if gone {
					renamed[f.Link] = f.Path
					first.Path = f.Path
					f = first
				}
			}
			if w.All {
				f.Opaque = false
			}
			if w.Epoch != nil && f.ModTime.After(*w.Epoch) {
				f.ModTime = *w.Epoch
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

func (w Rewriting) drops(name string) bool {
	for _, d := range w.Drop {
		d = strings.Trim(path.Clean("/"+d), "/")
		if name == d || strings.HasPrefix(name, d+"/") && d != "" {
			return true
		}
	}
	return false
}

func earlier(t *time.Time, epoch time.Time) *time.Time {
	if t == nil || t.After(epoch) {
		return &epoch
	}
	return t
}
