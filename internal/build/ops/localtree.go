package ops

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/image"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
	"den/internal/tree"
)

// localTree is a directory as it was when it was walked: names, metadata and
// digests. The content stays where it is.
type localTree struct {
	env  *Env
	dir  string
	root *localEntry
	sum  oci.Digest
}

// openLocalTree walks dir, helped by what the store remembers of an earlier
// walk.
func openLocalTree(ctx context.Context, env *Env, dir string, f localFilter) (*localTree, error) {
	dir, err := localAbs(dir)
	if err != nil {
		return nil, err
	}
	name := localCacheName(dir, f)
	known := &localCache{}
	if dt, err := env.Store.Derived(name); err == nil {
		known = parseLocalCache(dt)
	}
	root, err := walkLocal(ctx, dir, f, known)
	if err != nil {
		return nil, err
	}
	if known.stale(root) {
		// A memo that is not written costs time, not correctness.
		_ = env.Store.PutDerived(name, encodeLocalCache(root))
	}
	return &localTree{env: env, dir: dir, root: root, sum: contentOfLocal(root)}, nil
}

// Digest is that of the directory's content, without times.
func (t *localTree) Digest() oci.Digest { return t.sum }

// bytes sums up the files.
func (t *localTree) bytes() int64 {
	var n int64
	t.root.each(func(e *localEntry) {
		if e.first == "" {
			n += e.Size
		}
	})
	return n
}

// FS reads the directory. Files that were changed since it was walked are
// errors.
func (t *localTree) FS(context.Context) (tree.FS, func(), error) {
	f, err := t.open()
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}

func (t *localTree) open() (*localFS, error) {
	fd, err := unix.Open(t.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: t.dir, Err: err}
	}
	return &localFS{t: t, fd: fd}, nil
}

// Import copies the directory into the store as a layer.
func (t *localTree) Import(ctx context.Context) (image.Layer, *store.Layer, error) {
	name := "context-layer/" + t.stamp().digest().Encoded()
	if dt, err := t.env.Store.Derived(name); err == nil && oci.CheckDigest(oci.Digest(dt)) == nil {
		if l, err := t.env.Store.Layer(ctx, oci.Digest(dt)); err == nil {
			return t.env.builtLayer(l), l, nil
		}
	}
	f, err := t.open()
	if err != nil {
		return image.Layer{}, nil, err
	}
	defer f.Close()
	draft, err := t.env.Store.NewDraft(ctx)
	if err != nil {
		return image.Layer{}, nil, err
	}
	defer draft.Close()
	watch, err := draft.Watch(ctx)
	if err != nil {
		return image.Layer{}, nil, err
	}
	built, err := layer.Build(watch.Context(), draft.FS(), f.files(), t.env.buildOptions())
	if err = errors.Join(err, watch.Stop()); err == nil {
		err = f.verify(t.root)
	}
	if err != nil {
		return image.Layer{}, nil, err
	}
	l, err := draft.Publish(ctx, appliedMeta(built))
	if err != nil {
		return image.Layer{}, nil, err
	}
	_ = t.env.Store.PutDerived(name, []byte(l.DiffID())) // only a memo
	return t.env.builtLayer(l), l, nil
}

// builtLayer describes a layer that this build made.
func (e *Env) builtLayer(l *store.Layer) image.Layer {
	made := time.Now().UTC()
	if e.SourceDateEpoch != nil {
		made = e.SourceDateEpoch.UTC()
	}
	return image.Layer{DiffID: l.DiffID(), SizeBytes: l.Meta().SizeBytes, Created: &made}
}

// buildOptions are those of layers' trees in this store.
func (e *Env) buildOptions() layer.UnpackOptions {
	return layer.UnpackOptions{InUserns: e.InUserns, Image: e.Store.ImageForm()}
}

// scratchOptions are those of directories that a step's sandbox writes to.
func (e *Env) scratchOptions() layer.UnpackOptions {
	return layer.UnpackOptions{InUserns: e.InUserns, Recorded: e.Recorded}
}

func appliedMeta(a layer.Applied) store.LayerMeta {
	return store.LayerMeta{DiffID: a.DiffID, SizeBytes: a.SizeBytes, TreeBytes: a.TreeBytes, Entries: a.Entries}
}

// stamp covers what the layer of the directory depends on: content, names and
// times.
func (t *localTree) stamp() localSum {
	h := sha256.New()
	var b []byte
	t.root.each(func(e *localEntry) {
		b = binary.AppendUvarint(b[:0], uint64(len(e.Path)))
		b = append(b, e.Path...)
		b = binary.AppendVarint(b, e.ModTime.UnixNano())
		b = binary.AppendUvarint(b, uint64(len(e.first)))
		b = append(b, e.first...)
		b = append(b, e.digest[:]...)
		h.Write(b)
	})
	var out localSum
	h.Sum(out[:0])
	return out
}

// find returns the entry of a path, or nil.
func (t *localTree) find(p string) *localEntry {
	e := t.root
	p = strings.Trim(p, "/")
	if p == "" || p == "." {
		return e
	}
	for end := 0; end < len(p); {
		next := strings.IndexByte(p[end:], '/')
		if next < 0 {
			next = len(p)
		} else {
			next += end
		}
		i, ok := slices.BinarySearchFunc(e.children, p[:next], func(c *localEntry, want string) int {
			return strings.Compare(c.Path, want)
		})
		if !ok {
			return nil
		}
		e, end = e.children[i], next+1
	}
	return e
}
