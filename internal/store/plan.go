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
	candidates = slices.DeleteFunc(candidates, func(e CacheEntry) bool { return !o.match(e) })
	if o.KeepBytes > 0 {
		candidates = inv.byUse(candidates, o.staleness())
	} else {
		slices.SortFunc(candidates, func(a, b CacheEntry) int { return a.LastUsed.Compare(b.LastUsed) })
	}
	for _, e := range candidates {
		if o.KeepBytes > 0 && p.LeftBytes <= o.KeepBytes {
			break
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

// byUse orders entries for who needs room, and leaves out those that free nothing. An
// object goes when the last that names it goes, so it is as stale as the least stale
// of them, and an entry is as stale as the stalest of its objects: the result of a
// step is part of all that was built on it, and stays until that has gone.
// What images name, or somebody uses, does not go at all.
func (inv *inventory) byUse(entries []CacheEntry, stale func(CacheEntry) float64) []CacheEntry {
	objects := map[object]float64{}
	for _, e := range entries {
		for _, obj := range inv.keeps[e.rel] {
			if age, known := objects[obj]; !known || stale(e) < age {
				objects[obj] = stale(e)
			}
		}
	}
	type aged struct {
		CacheEntry
		age float64
	}
	var out []aged
	for _, e := range entries {
		objs := inv.keeps[e.rel]
		age, frees := stale(e), e.Type == cacheMounted || len(objs) == 0 // a record of which all is gone is of no use
		for _, obj := range objs {
			if inv.pinned(obj) {
				continue
			}
			if !frees || objects[obj] > age {
				age = objects[obj]
			}
			frees = true
		}
		if frees {
			out = append(out, aged{e, age})
		}
	}
	slices.SortStableFunc(out, func(a, b aged) int { return cmp.Compare(b.age, a.age) })
	sorted := make([]CacheEntry, len(out))
	for i, e := range out {
		sorted[i] = e.CacheEntry
	}
	return sorted
}

// staleness says what goes first: what was used longest ago. Under pressure what was
// dear to make, for its size, ages slower.
func (o PruneOptions) staleness() func(CacheEntry) float64 {
	now := time.Now()
	return func(e CacheEntry) float64 {
		idle := now.Sub(e.LastUsed).Seconds()
		if !o.pressed {
			return idle
		}
		// How many seconds it takes to make a mebibyte of it again.
		cost := e.Cost.Seconds() / (float64(e.SizeBytes)/(1<<20) + 1)
		return (max(idle, 0) + 1) / (1 + cost)
	}
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
