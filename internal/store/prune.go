package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

const (
	// engineTTL is how long the names of an engine without a live process are
	// kept.
	engineTTL = 24 * time.Hour
	// partialTTL is how long an interrupted download waits for its next try.
	partialTTL = 24 * time.Hour
	// derivedTTL is how long a memo is kept without being used.
	derivedTTL = 30 * 24 * time.Hour
)

// The types of build cache, as BuildKit's filter "type" calls them.
const (
	cacheRegular = "regular"
	cacheMounted = "exec.cachemount"
	// cachePulled is a reference that can be pulled again.
	cachePulled = "pulled"
)

// PruneOptions says which build cache may go. Objects that a reference or a
// container names never do.
type PruneOptions struct {
	// KeepBytes, if positive, stops the eviction, oldest use first, when objects
	// and cache mounts together take no more.
	KeepBytes int64
	// MaxUsedBytes, if positive, evicts only what is over it, MinFreeBytes only
	// what it takes to have that much free on the disk; both down to KeepBytes
	// at most. They are BuildKit's.
	MaxUsedBytes, MinFreeBytes int64
	// Until keeps what was used more recently than that; 0 keeps nothing.
	Until time.Duration
	// All evicts also records whose result is part of an image.
	All bool
	// OnlyGarbage evicts nothing: only what nothing names goes.
	OnlyGarbage bool
	// Filters are docker's: "type" (regular or exec.cachemount), "id" (a
	// record's key or its begin, or a cache mount's id).
	Filters map[string][]string
	// Evicted, if there is one, is told of each cache entry that went.
	Evicted func(CacheEntry)

	// pressed says that room is needed: pulled references, which are a cache of
	// registries, may go too, and the cost of entries counts.
	pressed bool
}

func (o PruneOptions) check() error {
	for name := range o.Filters {
		if name != "type" && name != "id" {
			return fmt.Errorf("prune: filter %q is not known, only type and id are: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (o PruneOptions) match(e CacheEntry) bool {
	if o.OnlyGarbage {
		return false
	}
	if o.Until > 0 && time.Since(e.LastUsed) < o.Until {
		return false
	}
	if e.InUse || e.Shared && !o.All {
		return false
	}
	if types := o.Filters["type"]; len(types) > 0 && !slices.Contains(types, e.Type) {
		return false
	}
	ids := o.Filters["id"]
	return len(ids) == 0 || slices.ContainsFunc(ids, func(id string) bool {
		return id == e.ID || e.Type == cacheRegular && id != "" && strings.HasPrefix(strings.TrimPrefix(e.ID, "sha256:"), id)
	})
}

// Prune evicts build cache and collects what nothing names then. It returns how
// many bytes that freed, as far as is known without walking trees.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (freedBytes int64, err error) {
	if err := o.check(); err != nil {
		return 0, err
	}
	unlock, err := s.lockGC(ctx)
	if err != nil {
		return 0, fmt.Errorf("prune: %w", err)
	}
	defer unlock()
	freed, err := s.prune(ctx, o)
	if err != nil {
		return freed, fmt.Errorf("prune: %w", err)
	}
	return freed, nil
}

// prune is Prune for the only collector.
func (s *Store) prune(ctx context.Context, o PruneOptions) (freedBytes int64, err error) {
	plan, err := s.planPrune(ctx, o)
	if err != nil {
		return 0, err
	}
	for _, e := range plan.Evict {
		gone, err := s.evict(e)
		if err != nil {
			return freedBytes, fmt.Errorf("%s: %w", e.ID, err)
		}
		if gone && e.Type == cacheMounted {
			freedBytes += e.SizeBytes
		}
		if gone && o.Evicted != nil {
			o.Evicted(e)
		}
	}
	if err := s.forget(ctx, plan.Forget); err != nil {
		return freedBytes, err
	}
	n, err := s.collect(ctx)
	return freedBytes + n, err
}

// evict removes a record, which is always safe, or a cache mount unless
// somebody uses it. Its objects are the collector's.
func (s *Store) evict(e CacheEntry) (gone bool, err error) {
	if err := failpoint.Hit("store.gc.evict"); err != nil {
		return false, err
	}
	if e.Type == cacheMounted {
		return s.discard(s.path(e.rel))
	}
	return true, removeFile(s.path(e.rel))
}

// keep is the size down to which to evict, of total now; 0 is no limit.
func (o PruneOptions) keep(total, free int64) int64 {
	if o.MaxUsedBytes == 0 && o.MinFreeBytes == 0 {
		return o.KeepBytes
	}
	keep := total
	if o.MaxUsedBytes > 0 {
		keep = min(keep, o.MaxUsedBytes)
	}
	if lack := o.MinFreeBytes - free; lack > 0 {
		keep = min(keep, total-lack)
	}
	return max(keep, o.KeepBytes, 1)
}

func olderThan(path string, age time.Duration) bool {
	info, err := os.Lstat(path)
	return err == nil && time.Since(info.ModTime()) > age
}

// forgetPartial removes an interrupted download unless somebody is at it.
func (s *Store) forgetPartial(path string) error {
	f, err := openLock(s.path("work", workName("blob", filepath.Base(path))), false)
	if err != nil {
		return err
	}
	defer f.Close()
	ok, err := sys.TryFlock(f, unix.LOCK_EX)
	if !ok || err != nil {
		return err
	}
	if ok, err = sys.SameInode(f, f.Name()); !ok || err != nil {
		return err
	}
	return removeFile(path)
}

// forgetEngine removes the folder of an engine that has no live process, ran
// no container that still lives and was not used for engineTTL.
func (s *Store) forgetEngine(path string) error {
	lock := filepath.Join(path, "lock")
	if !olderThan(lock, engineTTL) {
		return nil
	}
	return s.ifUnused(lock, func() error {
		ids, err := readNames(filepath.Join(path, "containers"))
		if err != nil {
			return err
		}
		for _, cid := range ids {
			dead := false
			err := s.ifUnused(filepath.Join(path, "containers", cid), func() error { dead = true; return nil })
			if !dead || err != nil {
				return err
			}
		}
		classes, err := readNames(s.path("volumes"))
		if err != nil {
			return err
		}
		for _, class := range classes {
			if _, err := s.moveToTrash(s.path("volumes", class, filepath.Base(path))); ignore(err, os.ErrNotExist) != nil {
				return err
			}
		}
		_, err = s.moveToTrash(path)
		return err
	})
}
