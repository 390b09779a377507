package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// A ledger is an upper bound of what the store takes: what was measured, and
// all that was admitted since. What is removed is only seen by measuring, which
// is done when the bound is too high.
type ledger struct {
	MeasuredBytes int64 `json:"measuredBytes"`
	AdmittedBytes int64 `json:"admittedBytes"`
	// FSUsedBytes is what all files of the file system took at the measurement.
	// Growth beyond AdmittedBytes is of processes without a budget.
	FSUsedBytes int64 `json:"fsUsedBytes"`
	// Round counts the measurements; 0 is that there was none.
	Round int64 `json:"round"`

	// unlocked says that the lock could not be had: this is nobody's ledger.
	unlocked bool
}

func (l ledger) boundBytes(fsUsed int64) int64 {
	return l.MeasuredBytes + max(l.AdmittedBytes, fsUsed-l.FSUsedBytes)
}

// ledgerFile is locked exclusively by who admits, for a few system calls. It is
// a hint: whatever is wrong with it, the next measurement mends.
const ledgerFile = "ledger"

// withLedger runs fn with the ledger, which is written back. When its lock can
// not be had because its holder was stopped, fn gets an unlocked one.
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
		return fn(&ledger{unlocked: true})
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

// tryAdmit admits n bytes if the ledger, or a new measurement, lets it. promise
// is called before anybody else may admit, so that no measurement misses them.
func (s *Store) tryAdmit(ctx context.Context, n int64, promise func() error) (ok bool, err error) {
	for measured := false; ; measured = true {
		var stale *ledger
		err = s.withLedger(ctx, func(l *ledger) error {
			d, err := sys.DiskOf(s.root)
			if err != nil {
				return err
			}
			if ok, err = s.freeEnough(d, n); !ok || err != nil {
				return err
			}
			if s.budget.maxBytes > 0 {
				if l.unlocked {
					if err := s.measureInto(ctx, l); err != nil {
						return err
					}
				}
				if ok = l.Round > 0 && l.boundBytes(d.UsedBytes)+n <= s.budget.maxBytes; !ok {
					stale = new(ledger)
					*stale = *l
					return nil
				}
				l.AdmittedBytes += n
			}
			return promise()
		})
		if stale == nil || measured || err != nil {
			return ok && err == nil, err
		}
		if err := s.remeasure(ctx, stale); err != nil {
			return false, err
		}
	}
}

// remeasure brings the ledger up to date, without its lock while it looks:
// others admit meanwhile. from is what was seen last, nil is to look.
func (s *Store) remeasure(ctx context.Context, from *ledger) error {
	if from == nil {
		err := s.withLedger(ctx, func(l *ledger) error {
			from = new(ledger)
			*from = *l
			return nil
		})
		if err != nil {
			return err
		}
	}
	var fresh ledger
	if err := s.measureInto(ctx, &fresh); err != nil {
		return err
	}
	return s.withLedger(ctx, func(l *ledger) error {
		if l.Round != from.Round {
			return nil // somebody else was faster
		}
		// What was admitted since from may be in the measurement or not.
		fresh.AdmittedBytes, fresh.Round = max(l.AdmittedBytes-from.AdmittedBytes, 0), from.Round+1
		*l = fresh
		return nil
	})
}

// measureInto measures what the store takes, open reservations included.
func (s *Store) measureInto(ctx context.Context, l *ledger) error {
	d, err := sys.DiskOf(s.root) // before: what grows meanwhile counts
	if err != nil {
		return err
	}
	used, reserved, err := s.measure(ctx)
	*l = ledger{MeasuredBytes: used + reserved, FSUsedBytes: d.UsedBytes, Round: l.Round + 1}
	return err
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
