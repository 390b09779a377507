package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"den/internal/failpoint"
	"den/internal/sys"
)

// A Plan is what a prune would remove, found without a lock: what somebody
// uses, or names, when it is carried out stays.
type Plan struct {
	// Evict are the cache entries that go, in this order.
	Evict []CacheEntry
	// Objects are the blobs and layers that nothing names then.
	Objects []PlannedObject
	// Forget are paths, relative to the root, of names of dead engines,
	// abandoned downloads and old memos.
	Forget []string
	// FreedBytes is what that frees, without what Forget does.
	FreedBytes int64
	// LeftBytes is what objects and cache mounts take afterwards.
	LeftBytes int64
}

// A PlannedObject is an object that a Plan removes.
type PlannedObject struct {
	// Kind is "blob" or "layer".
	Kind      string
	ID        string
	SizeBytes int64
}

// PlanGC says what Prune with the same options would remove.
func (s *Store) PlanGC(ctx context.Context, o PruneOptions) (Plan, error) {
	if err := o.check(); err != nil {
		return Plan{}, err
	}
	p, err := s.planPrune(ctx, o)
	if err != nil {
		err = fmt.Errorf("plan: %w", err)
	}
	return p, err
}

func (s *Store) planPrune(ctx context.Context, o PruneOptions) (Plan, error) {
	inv, err := s.takeInventory(ctx)
	if err != nil {
		return Plan{}, err
	}
	forget, err := s.forgettable(ctx, o)
	if err != nil {
		return Plan{}, err
	}
	d, err := sys.DiskOf(s.root)
	if err != nil {
		return Plan{}, err
	}
	o.KeepBytes = o.keep(inv.totalBytes, d.FreeBytes)
	p := inv.plan(o)
	p.Forget = forget
	return p, nil
}

// plan chooses what to evict and adds up what that frees. It changes nothing.
func (inv *inventory) plan(o PruneOptions) Plan {
	users := maps.Clone(inv.users)
	p := Plan{LeftBytes: inv.totalBytes}
	drop := func(obj object) {
		p.Objects = append(p.Objects, PlannedObject{string(obj.kind), obj.id, inv.sizes[obj]})
		p.FreedBytes += inv.sizes[obj]
		p.LeftBytes -= inv.sizes[obj]
	}
	for obj := range inv.sizes {
		if users[obj] == 0 {
			drop(obj)
		}
	}
	candidates := slices.Clone(inv.entries)
	if o.pressed {
		candidates = append(candidates, inv.pulled...)
	}
	for _, e := range slices.SortedFunc(slices.Values(candidates), o.order()) {
		if o.KeepBytes > 0 && p.LeftBytes <= o.KeepBytes {
			break
		}
		if !o.match(e) {
			continue
		}
		p.Evict = append(p.Evict, e)
		if e.Type == cacheMounted {
			p.FreedBytes += e.SizeBytes
			p.LeftBytes -= e.SizeBytes
		}
		for _, obj := range inv.keeps[e.rel] {
			if users[obj]--; users[obj] == 0 {
				drop(obj)
			}
		}
	}
	slices.SortFunc(p.Objects, func(a, b PlannedObject) int {
		return strings.Compare(a.Kind+a.ID, b.Kind+b.ID)
	})
	return p
}

// order says which entry goes first: the one used longest ago. Under pressure
// what was dear to make, for its size, ages slower.
func (o PruneOptions) order() func(a, b CacheEntry) int {
	if !o.pressed {
		return func(a, b CacheEntry) int { return a.LastUsed.Compare(b.LastUsed) }
	}
	now := time.Now()
	return func(a, b CacheEntry) int { return cmp.Compare(b.staleness(now), a.staleness(now)) }
}

// staleness is the time since an entry was used, divided by how many seconds
// it takes to make a mebibyte of it again.
func (e CacheEntry) staleness(now time.Time) float64 {
	idle := max(now.Sub(e.LastUsed).Seconds(), 0) + 1
	mebibytes := float64(e.SizeBytes)/(1<<20) + 1
	return idle / (1 + e.Cost.Seconds()/mebibytes)
}

// forgettable lists, relative to the root, what is not worth keeping for its
// age: dead engines, abandoned downloads and memos. With All and no other wish
// it lists every memo and every download.
func (s *Store) forgettable(ctx context.Context, o PruneOptions) ([]string, error) {
	all := o.All && o.KeepBytes == 0 && o.MaxUsedBytes == 0 && o.MinFreeBytes == 0 && o.Until == 0 && len(o.Filters) == 0
	var rels []string
	err := s.eachName(ctx, "engines", func(path string) error {
		if olderThan(filepath.Join(path, "lock"), engineTTL) {
			rels = append(rels, filepath.Join("engines", filepath.Base(path)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.eachName(ctx, "ingest", func(path string) error {
		if all || olderThan(path, partialTTL) {
			rels = append(rels, filepath.Join("ingest", filepath.Base(path)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.shards(ctx, "derived", func(shard, name string) error {
		rel := filepath.Join("derived", shard, name)
		if all || olderThan(s.path(rel), derivedTTL) {
			rels = append(rels, rel)
		}
		return nil
	})
	return rels, err
}

// forget removes what forgettable listed, but for what somebody uses.
func (s *Store) forget(ctx context.Context, rels []string) error {
	for _, rel := range rels {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := failpoint.Hit("store.gc.forget"); err != nil {
			return err
		}
		path := s.path(rel)
		var err error
		switch top, _, _ := strings.Cut(rel, "/"); top {
		case "engines":
			err = s.forgetEngine(path)
		case "ingest":
			err = s.forgetPartial(path)
		default:
			err = removeFile(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
