package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// objects calls fn with every blob and layer of every class.
func (s *Store) objects(ctx context.Context, fn func(object) error) error {
	blobs, err := readNames(s.path("blobs", "sha256"))
	if err != nil {
		return err
	}
	for _, hex := range blobs {
		if !isHex(hex) {
			continue
		}
		if err := fn(object{kindBlob, hex}); err != nil {
			return err
		}
	}
	classes, err := s.classes()
	if err != nil {
		return err
	}
	for _, class := range classes {
		err := s.shards(ctx, filepath.Join("layers", class), func(_, id string) error {
			if !isHex(id) {
				return nil // of another format
			}
			return fn(layerObject(class, id))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) classes() ([]string, error) { return readNames(s.path("layers")) }

// shards calls fn with the members of the two-letter folders of a folder.
func (s *Store) shards(ctx context.Context, folder string, fn func(shard, name string) error) error {
	shards, err := readNames(s.path(folder))
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		names, err := readNames(s.path(folder, shard))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := fn(shard, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// A root is what keeps objects: a reference, a container or, for as long as
// the policy likes, a build-cache record.
type root struct {
	Record
	name string // of a reference
	what string // for humans
	rel  string
	used time.Time
}

// roots calls fn with every reference and container of every engine.
func (s *Store) roots(ctx context.Context, fn func(root) error) error {
	engines, err := readNames(s.path("engines"))
	if err != nil {
		return err
	}
	folders := []string{pulledFolder}
	for _, id := range engines {
		folders = append(folders, filepath.Join("engines", id, "refs"))
	}
	for _, folder := range folders {
		names, err := readNames(s.path(folder))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.readRoot(ctx, filepath.Join(folder, name), "reference", fn); err != nil {
				return err
			}
		}
	}
	for _, id := range engines {
		folder := filepath.Join("engines", id, "containers")
		names, err := readNames(s.path(folder))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.readRoot(ctx, filepath.Join(folder, name, rootsFile), "container "+name, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// records calls fn with every build-cache record.
func (s *Store) records(ctx context.Context, fn func(root) error) error {
	return s.shards(ctx, "cache", func(shard, name string) error {
		return s.readRoot(ctx, filepath.Join("cache", shard, name), "record", fn)
	})
}

// readRoot reads one file; what is gone or does not parse keeps nothing.
func (s *Store) readRoot(ctx context.Context, rel, what string, fn func(root) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var r Ref
	info, err := readJSON(s.path(rel), &r)
	_, bad := errors.AsType[*badFileError](err)
	if bad || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.check() != nil {
		return nil
	}
	if r.Name != "" {
		what += " " + r.Name
	}
	return fn(root{Record: r.Record, name: r.Name, what: what, rel: rel, used: info.ModTime()})
}

// A closure is the set of objects that roots keep. It reads the metadata of the
// layers in it, because a delta keeps the trees below it.
type closure struct {
	store   *Store
	classes []string
	live    map[object]bool
	over    map[object][]oci.Digest // what was read
}

func (s *Store) newClosure() (*closure, error) {
	classes, err := s.classes()
	return &closure{store: s, classes: classes, live: map[object]bool{}, over: map[object][]oci.Digest{}}, err
}

// empty returns another closure that knows what c has read.
func (c *closure) empty() *closure {
	return &closure{store: c.store, classes: c.classes, live: map[object]bool{}, over: c.over}
}

func (c *closure) add(r Record) error {
	for _, d := range r.Blobs {
		c.live[blobObject(d)] = true
	}
	return c.addLayers(r.Layers)
}

func (c *closure) addLayers(diffIDs []oci.Digest) error {
	for _, d := range diffIDs {
		for _, class := range c.classes {
			o := layerObject(class, layerID(class, d))
			if c.live[o] {
				continue
			}
			c.live[o] = true
			over, err := c.below(o)
			if err != nil {
				return err
			}
			if err := c.addLayers(over); err != nil {
				return err
			}
		}
	}
	return nil
}

// below names the trees that the layer o needs; one that is not there, or is
// damaged, needs none.
func (c *closure) below(o object) ([]oci.Digest, error) {
	if over, known := c.over[o]; known {
		return over, nil
	}
	meta, err := readMeta(c.store.path(o.rel()))
	if err != nil && !errors.Is(err, errBadMeta) {
		return nil, err
	}
	c.over[o] = meta.Over
	return meta.Over, nil
}

// objectBytes is what o takes on disk, as far as is known without walking it.
func (s *Store) objectBytes(o object) int64 {
	if o.kind == kindBlob {
		info, err := os.Lstat(s.path(o.rel()))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	meta, err := readMeta(s.path(o.rel()))
	if err != nil {
		return 0
	}
	return meta.diskBytes()
}

// A mutable is a tree that changes: a cache mount, volume or container.
type mutable struct {
	rel   string
	id    string // of a cache mount
	used  time.Time
	inUse bool
}

func (s *Store) cacheMounts(ctx context.Context) ([]mutable, error) {
	return s.mutables(ctx, "cachemount/*/*/*")
}

// globRel is fs.Glob beneath root.
func globRel(root, pattern string) ([]string, error) { return fs.Glob(os.DirFS(root), pattern) }

// mutables finds the trees whose relative path matches pattern.
func (s *Store) mutables(ctx context.Context, pattern string) ([]mutable, error) {
	rels, err := globRel(s.root, pattern)
	if err != nil {
		return nil, err
	}
	var out []mutable
	for _, rel := range rels {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		m, err := s.mutable(rel)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func (s *Store) mutable(rel string) (mutable, error) {
	m := mutable{rel: rel}
	f, err := openObject(s.path(rel))
	if err != nil {
		return m, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return m, err
	}
	m.used = info.ModTime()
	if id, err := readBounded(s.path(rel, "id")); err == nil {
		m.id = string(id)
	}
	// Last, and given back at once: who wants the tree waits for no more than an instant.
	free, err := sys.TryFlock(f, unix.LOCK_EX)
	m.inUse = !free
	return m, err
}

// treeBytes walks a mutable tree; nobody keeps count of what is in it.
func (s *Store) treeBytes(rel string) (int64, error) {
	var n int64
	seen := map[uint64]bool{}
	err := sys.WalkChanging(s.path(rel), func(info fs.FileInfo) {
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || info.IsDir() || st.Nlink > 1 && seen[st.Ino] {
			return
		}
		seen[st.Ino] = st.Nlink > 1
		n += st.Blocks * 512
	})
	if err != nil {
		return n, fmt.Errorf("size of %s: %w", strings.TrimPrefix(rel, s.root), err)
	}
	return n, nil
}
