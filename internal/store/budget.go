package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// A budget is what this process lets the store take. The zero value is no
// limit, and costs nothing.
type budget struct {
	maxBytes     int64 // of everything in the store
	minFreeBytes int64 // of the file system
}

func (b budget) set() bool { return b.maxBytes > 0 || b.minFreeBytes > 0 }

// goal is what a collection for the budget leaves: some less than the cap, so
// that the next write does not have to collect again.
func (b budget) goal() int64 { return b.maxBytes - b.maxBytes/10 }

// errFull is a budget that holds more than it may with what can not be removed.
var errFull = fmt.Errorf("%w: %w", unix.ENOSPC, errdefs.ErrResourceExhausted)

// A ledger is an upper bound of what the store takes: what was measured, and
// all that was admitted since. What is removed is only seen by measuring, which
// is done when the bound is too high.
type ledger struct {
	MeasuredBytes int64 `json:"measuredBytes"`
	AdmittedBytes int64 `json:"admittedBytes"`
	// FSUsedBytes is what all files of the file system took at the measurement.
	// Growth beyond AdmittedBytes is of processes without a budget.
	FSUsedBytes int64 `json:"fsUsedBytes"`
	Measured    bool  `json:"measured"`
}

func (l ledger) boundBytes(fsUsed int64) int64 {
	return l.MeasuredBytes + max(l.AdmittedBytes, fsUsed-l.FSUsedBytes)
}

// ledgerFile is locked exclusively by who admits. It is a hint: whatever is
// wrong with it, the next measurement mends.
const ledgerFile = "ledger"

// withLedger runs fn with the ledger, which is written back. When its lock can
// not be had because its holder was stopped, fn gets an empty one.
func (s *Store) withLedger(ctx context.Context, fn func(*ledger) error) error {
	f, err := openLock(s.path("lock", ledgerFile), false)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.lockShortly(ctx, f, unix.LOCK_EX); err != nil {
		if !errors.Is(err, errBusy) {
			return err
		}
		return fn(&ledger{})
	}
	var l ledger
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return err
	}
	if json.Unmarshal(data, &l) != nil {
		l = ledger{}
	}
	before := l
	if err := fn(&l); err != nil || l == before {
		return err
	}
	if data, err = json.Marshal(l); err != nil {
		return err
	}
	if err := failpoint.Hit("store.ledger.write"); err != nil {
		return err
	}
	// One write of one length: the rest is blanks.
	_, err = f.WriteAt(fmt.Appendf(nil, "%-255s\n", data), 0)
	return ignore(err, unix.ENOSPC)
}

// admit lets n more bytes into the store, evicting cache for them if it must.
// The error is of class errdefs.ErrResourceExhausted, and unix.ENOSPC, when too
// much is pinned; while others hold reservations, beyond the own bytes of the
// caller's, it waits for them a while.
func (s *Store) admit(ctx context.Context, n, own int64) error {
	deadline := time.Now().Add(s.patience)
	// Each try measures the store.
	for p := (&poll{pause: 10 * time.Millisecond, most: time.Second}); ; {
		ok, err := s.tryAdmit(ctx, n)
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
		if reserved <= own || time.Now().After(deadline) {
			return full
		}
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
}

// tryAdmit admits n bytes if the ledger, or a measurement, lets it.
func (s *Store) tryAdmit(ctx context.Context, n int64) (ok bool, err error) {
	err = s.withLedger(ctx, func(l *ledger) error {
		d, err := sys.DiskOf(s.root)
		if err != nil {
			return err
		}
		if ok, err = s.freeEnough(d, n); !ok || err != nil {
			return err
		}
		if s.budget.maxBytes == 0 {
			return nil
		}
		if !l.Measured || l.boundBytes(d.UsedBytes)+n > s.budget.maxBytes {
			if err := s.measureInto(ctx, l); err != nil {
				return err
			}
		}
		if ok = l.boundBytes(d.UsedBytes)+n <= s.budget.maxBytes; ok {
			l.AdmittedBytes += n
		}
		return nil
	})
	return ok, err
}

// freeEnough reports whether n bytes, and those promised to others, fit beside
// what is to stay free.
func (s *Store) freeEnough(d sys.Disk, n int64) (bool, error) {
	if s.budget.minFreeBytes == 0 {
		return true, nil
	}
	reserved, err := s.reservedBytes()
	return d.FreeBytes-reserved-n >= s.budget.minFreeBytes, err
}

// measureInto measures what the store takes, open reservations included.
func (s *Store) measureInto(ctx context.Context, l *ledger) error {
	used, reserved, err := s.measure(ctx)
	if err != nil {
		return err
	}
	d, err := sys.DiskOf(s.root)
	*l = ledger{MeasuredBytes: used + reserved, FSUsedBytes: d.UsedBytes, Measured: true}
	return err
}

// measure adds up objects, cache mounts and all trees that change, and what is
// promised on top.
func (s *Store) measure(ctx context.Context) (usedBytes, reservedBytes int64, err error) {
	inv, err := s.takeInventory(ctx)
	if err != nil {
		return 0, 0, err
	}
	used := inv.totalBytes
	for _, pattern := range uppers {
		n, err := s.patternBytes(ctx, pattern)
		if err != nil {
			return 0, 0, err
		}
		used += n
	}
	reserved, err := s.reservedBytes()
	return used, reserved, err
}

// uppers are the trees that change, besides cache mounts.
var uppers = []string{"tmp/*", "ingest/*", "engines/*/containers/*", "volumes/*/*/*"}

// makeRoom evicts and collects until n bytes fit. It returns the error to show
// when that was not enough, and what is reserved.
func (s *Store) makeRoom(ctx context.Context, n int64) (full error, reservedBytes int64, err error) {
	unlock, err := s.lockGCFor(ctx, s.patience)
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
	if err := s.withLedger(ctx, func(l *ledger) error { return s.measureInto(ctx, l) }); err != nil {
		return nil, 0, err
	}
	if d, err = sys.DiskOf(s.root); err != nil {
		return nil, 0, err
	}
	return s.fullError(n, used, reserved, d), reserved, nil
}

// fullError is nil when n bytes fit.
func (s *Store) fullError(n, used, reserved int64, d sys.Disk) error {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	if cap := s.budget.maxBytes; cap > 0 && used+reserved+n > cap {
		return fmt.Errorf("store %s is full: %s are wanted; %s are in use or named by images and containers, %s are reserved by others, "+
			"and the cap is %s; remove some (den rm, den rmi, den store df) or raise --max-size: %w",
			s.root, size(n), size(used), size(reserved), size(cap), errFull)
	}
	if min := s.budget.minFreeBytes; min > 0 && d.FreeBytes-reserved-n < min {
		return fmt.Errorf("the disk of store %s is full: %s are wanted, %s are free, %s of them reserved by others, "+
			"and --min-free keeps %s; make room there: %w",
			s.root, size(n), size(d.FreeBytes), size(reserved), size(min), errFull)
	}
	return nil
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
	return fn()
}

// reliefBytes is how much a full disk makes the store give up at once.
const reliefBytes = 256 << 20

// Relieve removes cache because the disk is full, and says how much. Then the
// write that failed is worth one more try.
func (s *Store) Relieve(ctx context.Context) (freedBytes int64, err error) {
	unlock, err := s.lockGCFor(ctx, s.patience)
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
		if err != nil || !l.Measured {
			return err
		}
		over = l.boundBytes(d.UsedBytes) > s.budget.maxBytes
		return nil
	})
	if !over || err != nil {
		return err
	}
	f, err := openLock(s.path("lock", "gc"), false)
	if err != nil {
		return err
	}
	defer f.Close()
	if ok, err := sys.TryFlock(f, unix.LOCK_EX); !ok || err != nil {
		return err
	}
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
	return s.withLedger(ctx, func(l *ledger) error { return s.measureInto(ctx, l) })
}

// patternBytes is what the trees and files take that pattern matches.
func (s *Store) patternBytes(ctx context.Context, pattern string) (int64, error) {
	rels, err := globRel(s.root, pattern)
	if err != nil {
		return 0, err
	}
	var sum int64
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
	return sum, nil
}
