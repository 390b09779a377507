package store

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"den/internal/oci"
)

// UsageOf is what one kind of thing takes.
type UsageOf struct {
	Count int
	// Active are those that an image or container names, or somebody uses.
	Active           int
	Bytes            int64
	ReclaimableBytes int64
}

// Usage is what the store takes, as docker system df shows it. Layers count
// with the size of their tar, trees that change with what they take on disk.
type Usage struct {
	Blobs, Layers, Records, CacheMounts, Volumes, Containers UsageOf
	// Drafts are the uppers of steps, and downloads, that are under way.
	Drafts UsageOf
	// Bases are the base stores, which do not count here.
	Bases []BaseUsage
	// ReservedBytes is the room promised to writers, MaxBytes the cap if there
	// is one.
	ReservedBytes, MaxBytes int64
}

// A CacheEntry is a build-cache record or a cache mount.
type CacheEntry struct {
	// ID is a record's key or a cache mount's id.
	ID string
	// Type is "regular" or "exec.cachemount".
	Type        string
	Description string
	// SizeBytes is what the objects take that the record names, whether or not
	// others name them too.
	SizeBytes int64
	Created   time.Time
	LastUsed  time.Time
	// Cost is how long it took to make, where that is known.
	Cost time.Duration
	// Shared says that an image or container names its layers as well.
	Shared bool
	InUse  bool

	rel string
}

// An inventory is what the policy decides by.
type inventory struct {
	entries []CacheEntry
	pulled  []CacheEntry // the references that all engines share
	sizes   map[object]int64
	// users counts what names an object, keeps says what an entry names.
	users      map[object]int
	keeps      map[string][]object
	rooted     *closure
	totalBytes int64
	// leased reports whether somebody has a lease on an object just now.
	leased func(object) bool
	// images are the objects that references and containers of engines name.
	images map[object]bool
}

func (s *Store) takeInventory(ctx context.Context) (*inventory, error) {
	inv := &inventory{sizes: map[object]int64{}, users: map[object]int{}, keeps: map[string][]object{}}
	asked := map[object]bool{}
	inv.leased = func(o object) bool {
		leased, known := asked[o]
		if !known {
			leased = true
			_ = s.ifUnused(s.path(o.rel()), func() error { leased = false; return nil }) // an error: leave it
			asked[o] = leased
		}
		return leased
	}
	err := s.objects(ctx, func(o object) error {
		inv.sizes[o] = s.objectBytes(o)
		inv.totalBytes += inv.sizes[o]
		return nil
	})
	if err != nil {
		return nil, err
	}
	rooted, err := s.newClosure()
	if err != nil {
		return nil, err
	}
	var pulled []root
	err = s.roots(ctx, func(r root) error {
		if strings.HasPrefix(r.rel, pulledFolder+"/") {
			pulled = append(pulled, r)
			return nil
		}
		return rooted.add(r.Record)
	})
	if err != nil {
		return nil, err
	}
	inv.rooted, inv.images = rooted, maps.Clone(rooted.live)
	for o := range rooted.live {
		inv.users[o]++
	}
	for _, r := range pulled {
		if err := inv.addPulled(r); err != nil {
			return nil, err
		}
	}
	if err := s.records(ctx, func(r root) error { return inv.addRecord(r) }); err != nil {
		return nil, err
	}
	return inv, s.addCacheMounts(ctx, inv)
}

// pinned reports whether o stays whatever is evicted.
func (inv *inventory) pinned(o object) bool { return inv.images[o] || inv.leased(o) }

// addPulled counts a pulled reference as a root, and notes what it keeps.
func (inv *inventory) addPulled(r root) error {
	c := inv.rooted.empty()
	if err := c.add(r.Record); err != nil {
		return err
	}
	e := CacheEntry{ID: r.name, Type: cachePulled, Description: r.what, LastUsed: r.used, rel: r.rel}
	inv.keep(&e, c)
	inv.pulled = append(inv.pulled, e)
	for o := range c.live {
		inv.rooted.live[o] = true
	}
	return nil
}

// keep notes that e keeps what is in c.
func (inv *inventory) keep(e *CacheEntry, c *closure) {
	for o := range c.live {
		size, there := inv.sizes[o]
		if !there {
			continue
		}
		e.SizeBytes += size
		e.Shared = e.Shared || inv.rooted.live[o]
		inv.users[o]++
		inv.keeps[e.rel] = append(inv.keeps[e.rel], o)
	}
}

func (inv *inventory) addRecord(r root) error {
	c := inv.rooted.empty()
	if err := c.add(r.Record); err != nil {
		return err
	}
	key := filepath.Base(r.rel)
	e := CacheEntry{
		ID:          string(oci.Digest("sha256:" + key[:len(key)-len(filepath.Ext(key))])),
		Type:        cacheRegular,
		Description: r.Op,
		Created:     r.Created,
		LastUsed:    r.used,
		Cost:        time.Duration(r.CostNanos),
		rel:         r.rel,
	}
	inv.keep(&e, c)
	inv.entries = append(inv.entries, e)
	return nil
}

func (s *Store) addCacheMounts(ctx context.Context, inv *inventory) error {
	mounts, err := s.cacheMounts(ctx)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		size, err := s.treeBytes(m.rel)
		if err != nil {
			return err
		}
		inv.totalBytes += size
		inv.entries = append(inv.entries, CacheEntry{
			ID: m.id, Type: cacheMounted, Description: "cache mount " + m.id, SizeBytes: size,
			LastUsed: m.used, InUse: m.inUse, rel: m.rel,
		})
	}
	return nil
}

// CacheEntries lists the build cache.
func (s *Store) CacheEntries(ctx context.Context) ([]CacheEntry, error) {
	inv, err := s.takeInventory(ctx)
	if err != nil {
		return nil, fmt.Errorf("list build cache: %w", err)
	}
	return inv.entries, nil
}

// Usage measures the store.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	inv, err := s.takeInventory(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("usage: %w", err)
	}
	u := inv.usage()
	trees := []struct {
		of      *UsageOf
		pattern string
	}{
		{&u.Volumes, "volumes/*/" + s.engine.id + "/*"},
		{&u.Containers, s.engineRel("containers", "*")},
		{&u.Drafts, "tmp/*"},
		{&u.Drafts, "ingest/*"},
	}
	for _, t := range trees {
		if err := s.treeUsage(ctx, t.pattern, t.of); err != nil {
			return Usage{}, fmt.Errorf("usage: %w", err)
		}
	}
	if u.Bases, err = s.basesUsage(ctx); err != nil {
		return Usage{}, fmt.Errorf("usage: %w", err)
	}
	u.MaxBytes = s.budget.maxBytes
	if u.ReservedBytes, err = s.reservedBytes(); err != nil {
		return Usage{}, fmt.Errorf("usage: %w", err)
	}
	return u, nil
}

func (inv *inventory) usage() Usage {
	var u Usage
	for o, size := range inv.sizes {
		of := &u.Blobs
		if o.kind == kindLayer {
			of = &u.Layers
		}
		of.add(size, inv.rooted.live[o])
	}
	for _, e := range inv.entries {
		if e.Type == cacheMounted {
			u.CacheMounts.add(e.SizeBytes, e.InUse)
		} else {
			u.Records.add(0, e.Shared)
		}
	}
	return u
}

func (u *UsageOf) add(sizeBytes int64, active bool) {
	u.Count++
	u.Bytes += sizeBytes
	if active {
		u.Active++
	} else {
		u.ReclaimableBytes += sizeBytes
	}
}

// treeUsage measures this engine's trees. It does not try their locks: who
// does looks for an instant like one who runs the container.
func (s *Store) treeUsage(ctx context.Context, pattern string, of *UsageOf) error {
	rels, err := fs.Glob(os.DirFS(s.root), pattern)
	if err != nil {
		return err
	}
	for _, rel := range rels {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		size, err := s.treeBytes(rel)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		of.add(size, true)
	}
	return nil
}
