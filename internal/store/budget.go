package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A budget is what this process lets the store take. The zero value is no
// limit, and costs nothing.
type budget struct {
	maxBytes     int64 // of everything in the store
	minFreeBytes int64 // of the file system
	soft         bool  // evicts and refuses nothing
}

func (b budget) set() bool { return b.maxBytes > 0 || b.minFreeBytes > 0 }

// goal is what a collection for the budget leaves: some less than the cap, so
// that the next write does not have to collect again.
func (b budget) goal() int64 { return b.maxBytes - b.maxBytes/10 }

// errFull is a budget that holds more than it may with what can not be removed.
var errFull = fmt.Errorf("%w: %w", unix.ENOSPC, errdefs.ErrResourceExhausted)

// admit lets n more bytes into the store, evicting cache for them if it must.
// promise notes them where they are counted from then on. The error is of class
// errdefs.ErrResourceExhausted, and unix.ENOSPC, when too much is pinned; while
// others hold reservations, beyond the own bytes of the caller's, it waits for
// them, for no longer than patience.
func (s *Store) admit(ctx context.Context, n, own int64, patience time.Duration, promise func() error) error {
	if s.budget.soft && time.Since(time.Unix(s.crowded.Load(), 0)) < softPause {
		return promise()
	}
	deadline := time.Now().Add(patience)
	refused := 0
	// Each try measures the store.
	for p := (&poll{pause: 10 * time.Millisecond, most: time.Second}); ; {
		ok, err := s.tryAdmit(ctx, n, promise)
		if ok || err != nil {
			return err
		}
		full, reserved, err := s.makeRoom(ctx, n)
		if err != nil {
			return err
		}
		if full == nil {
			continue
		}
		if s.budget.soft {
			s.crowded.Store(time.Now().Unix())
			return promise()
		}
		switch {
		case reserved > own:
			if !time.Now().Before(deadline) {
				return &crowdedError{full}
			}
		case refused == sureRefusals:
			return full
		default:
			refused++
		}
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
}

// softPause is for how long a process does not try again to keep a soft budget
// that named images alone exceed.
const softPause = time.Minute

// sureRefusals is how many measurements are not believed that find the store full of what
// cannot be removed: what moves on meanwhile, as what is being published, counts twice.
const sureRefusals = 2

// A crowdedError is a store that is full of what others reserved, for now.
type crowdedError struct{ full error }

func (e *crowdedError) Error() string { return e.full.Error() }
func (e *crowdedError) Unwrap() error { return e.full }

// measure adds up objects, cache mounts and all trees that change, and what is
// promised on top. The order is that of a life: a byte that moves on meanwhile, from a
// promise to a draft to an object to the trash, counts twice and never not at all.
func (s *Store) measure(ctx context.Context) (usedBytes, reservedBytes int64, err error) {
	reserved, err := s.reservedBytes()
	if err != nil {
		return 0, 0, err
	}
	used, err := s.patternsBytes(ctx, uppers...)
	if err != nil {
		return 0, 0, err
	}
	err = s.objects(ctx, func(o object) error {
		used += s.objectBytes(o)
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	trash, err := s.patternsBytes(ctx, "trash/*")
	return used + trash, reserved, err
}

// uppers are the trees that change.
var uppers = []string{"tmp/*", "ingest/*", "engines/*/containers/*", "volumes/*/*/*", "cachemount/*/*/*"}

// makeRoom evicts and collects until n bytes fit. It returns the error to show
// when that was not enough, and what is reserved.
func (s *Store) makeRoom(ctx context.Context, n int64) (full error, reservedBytes int64, err error) {
	unlock, err := s.lockGC(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer unlock()
	used, reserved, err := s.measure(ctx)
	if err != nil {
		return nil, 0, err
	}
	var over int64
	if s.budget.maxBytes > 0 && used+reserved+n > s.budget.maxBytes {
		over = used + reserved + n - s.budget.goal()
	}
	d, err := sys.DiskOf(s.root)
	if err != nil {
		return nil, 0, err
	}
	over = max(over, s.budget.minFreeBytes+reserved+n-d.FreeBytes)
	if over > 0 {
		if _, err := s.relieve(ctx, over); err != nil {
			return nil, 0, err
		}
	}
	if used, reserved, err = s.measure(ctx); err != nil {
		return nil, 0, err
	}
	if err := s.remeasure(ctx, nil); err != nil {
		return nil, 0, err
	}
	if d, err = sys.DiskOf(s.root); err != nil {
		return nil, 0, err
	}
	return s.fullError(n, used, reserved, d), reserved, nil
}

// fullError is nil when n more bytes fit.
func (s *Store) fullError(n, used, reserved int64, d sys.Disk) error {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	wanted := ""
	if n > 0 {
		wanted = size(n) + " more are wanted; "
	}
	if cap := s.budget.maxBytes; cap > 0 && used+reserved+n > cap {
		return fmt.Errorf("store %s is full: %s%s are in use or named by images and containers, %s are reserved for what is being written, "+
			"and the cap is %s; remove some (den rm, den rmi, den store df) or raise --max-size: %w",
			s.root, wanted, size(used), size(reserved), size(cap), errFull)
	}
	if min := s.budget.minFreeBytes; min > 0 && d.FreeBytes-reserved-n < min {
		return fmt.Errorf("the disk of store %s is full: %s%s are free, %s of them reserved for what is being written, "+
			"and --min-free keeps %s; make room there: %w",
			s.root, wanted, size(d.FreeBytes), size(reserved), size(min), errFull)
	}
	return nil
}

// overBudget is nil while the store is within its budget, or that is soft.
func (s *Store) overBudget(ctx context.Context) error {
	if s.budget.soft {
		return nil
	}
	used, reserved, err := s.measure(ctx)
	if err != nil {
		return err
	}
	d, err := sys.DiskOf(s.root)
	if err != nil {
		return err
	}
	return s.fullError(0, used, reserved, d)
}

// relieve frees about n bytes of cache, what is cheap to have again first.
// The caller is the only collector.
func (s *Store) relieve(ctx context.Context, n int64) (int64, error) {
	// What the dead left takes room and is of no use to anybody.
	if err := s.reap(ctx); err != nil {
		return 0, err
	}
	inv, err := s.takeInventory(ctx)
	if err != nil {
		return 0, err
	}
	return s.prune(ctx, PruneOptions{All: true, KeepBytes: max(inv.totalBytes-n, 1), pressed: true})
}

// RetryFull runs fn, and once more if it failed because the disk was full and
// some cache could be removed. A refusal by the cap is final: room was made
// already.
func (s *Store) RetryFull(ctx context.Context, fn func() error) error {
	err := fn()
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, errFull) {
		return err
	}
	freed, rerr := s.Relieve(ctx)
	if rerr != nil || freed == 0 {
		return err
	}
	s.notice(fmt.Sprintf("store %s: the disk is full; removed %s of cache and try again", s.root, units.HumanSize(float64(freed))))
	return fn()
}

// fullBytes is how little free space makes a failure the full disk's.
const fullBytes = 4 << 20

// DiskFull reports whether a program that writes into the store has most likely
// been told that the disk is full.
func (s *Store) DiskFull() bool {
	d, err := sys.DiskOf(s.root)
	return err == nil && d.FreeBytes < fullBytes
}

// reliefBytes is how much a full disk makes the store give up at once.
const reliefBytes = 256 << 20

// Relieve removes cache because the disk is full, and says how much. Then the
// write that failed is worth one more try.
func (s *Store) Relieve(ctx context.Context) (freedBytes int64, err error) {
	unlock, err := s.lockGC(ctx)
	if err != nil {
		return 0, fmt.Errorf("relieve: %w", err)
	}
	defer unlock()
	before, err := sys.DiskOf(s.root)
	if err != nil {
		return 0, fmt.Errorf("relieve: %w", err)
	}
	freed, err := s.relieve(ctx, reliefBytes)
	if err != nil {
		return freed, fmt.Errorf("relieve: %w", err)
	}
	after, err := sys.DiskOf(s.root)
	return max(freed, after.FreeBytes-before.FreeBytes), err
}

// collectAtExit brings the store below its cap, unless somebody is at it.
func (s *Store) collectAtExit(ctx context.Context) error {
	if s.budget.maxBytes == 0 || s.readOnly {
		return nil
	}
	over := false
	err := s.withLedger(ctx, func(l *ledger) error {
		d, err := sys.DiskOf(s.root)
		if err != nil || l.Round == 0 {
			return err
		}
		over = l.boundBytes(d.UsedBytes) > s.budget.maxBytes
		return nil
	})
	if !over || err != nil {
		return err
	}
	w, err := s.tryWorkAt(s.path("lock", "gc"))
	if w == nil || err != nil {
		return err
	}
	defer w.Done()
	return s.withinBudget(ctx)
}

// withinBudget measures, and evicts down to the goal if the store is over its
// cap. The caller is the only collector.
func (s *Store) withinBudget(ctx context.Context) error {
	used, reserved, err := s.measure(ctx)
	if err != nil {
		return err
	}
	if used+reserved > s.budget.maxBytes {
		if _, err := s.relieve(ctx, used+reserved-s.budget.goal()); err != nil {
			return err
		}
	}
	return s.remeasure(ctx, nil)
}

// patternsBytes is what the trees and files take that one of the patterns matches.
func (s *Store) patternsBytes(ctx context.Context, patterns ...string) (int64, error) {
	var sum int64
	for _, pattern := range patterns {
		rels, err := globRel(s.root, pattern)
		if err != nil {
			return 0, err
		}
		for _, rel := range rels {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			n, err := s.treeBytes(rel)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
