package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"crypto/rand"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// reserveFolder holds one file for each reservation: how many bytes may still
// be written under it. The writer holds it locked, so that the promise ends
// with the process.
const reserveFolder = "reserve"

const (
	// maxStep bounds what a write of unknown size reserves at once.
	maxStep = 256 << 20
	// minStep is what the first such reservation is.
	minStep = 1 << 20
	// settleBytes is how exact the file is.
	settleBytes = 4 << 20
)

// A Reservation is room for bytes that are not written yet. Without a budget
// it is nil, and every method of it does nothing.
type Reservation struct {
	store *Store
	file  *os.File

	mu      sync.Mutex
	left    int64 // what may still be written
	settled int64 // what the file says
	total   int64 // what was ever asked for
}

// Reserve makes room for n bytes, or for a first step of a write of unknown
// size if n is negative. The error is of class errdefs.ErrResourceExhausted
// when more is pinned than the cap leaves.
func (s *Store) Reserve(ctx context.Context, n int64) (*Reservation, error) {
	if !s.budget.set() || s.readOnly {
		return nil, nil
	}
	f, err := s.newReservation()
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	r := &Reservation{store: s, file: f}
	if n < 0 {
		n = r.step()
	}
	if err := r.grow(ctx, n, s.patience); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// newReservation makes an empty file, locked.
func (s *Store) newReservation() (*os.File, error) {
	for {
		path := s.path(reserveFolder, rand.Text())
		if err := failpoint.Hit("store.reserve.create"); err != nil {
			return nil, err
		}
		f, err := createFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(s.path(reserveFolder), 0o755); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		same := false
		if err = failpoint.Hit("store.reserve.lock"); err == nil {
			same, err = sys.TryFlock(f, unix.LOCK_EX)
		}
		if same && err == nil {
			same, err = sys.SameInode(f, path) // the collector may have reaped it
		}
		if same && err == nil {
			return f, nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, errors.Join(err, removeFile(path))
		}
	}
}

// step is how much to reserve next for a write of unknown size: as much as
// was written so far, within limits.
func (r *Reservation) step() int64 {
	most := int64(maxStep)
	if cap := r.store.budget.maxBytes; cap > 0 {
		most = max(min(most, cap/16), minStep)
	}
	return min(max(r.total, minStep), most)
}

// grow admits n more bytes, after waiting for others no longer than patience.
func (r *Reservation) grow(ctx context.Context, n int64, patience time.Duration) error {
	r.mu.Lock()
	own := max(r.settled, 0)
	r.mu.Unlock()
	return r.store.admit(ctx, n, own, patience, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.left = max(r.left, 0) + n
		r.total += n
		return r.settle()
	})
}

// settle writes what is left into the file.
func (r *Reservation) settle() error {
	r.settled = r.left
	_, err := r.file.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(max(r.left, 0))), 0)
	return ignore(err, unix.ENOSPC)
}

// Ensure makes room for n more bytes, in steps.
func (r *Reservation) Ensure(ctx context.Context, n int64) error {
	if r == nil {
		return nil
	}
	return r.ensure(ctx, n, r.store.patience)
}

func (r *Reservation) ensure(ctx context.Context, n int64, patience time.Duration) error {
	lack, step := r.lack(n)
	if lack <= 0 {
		return nil
	}
	return r.grow(ctx, max(lack, step), patience)
}

// lack is how much of n is not reserved yet.
func (r *Reservation) lack(n int64) (lack, step int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return n - max(r.left, 0), r.step()
}

// overdrawn reports whether more was written than was reserved. What is written
// is measured, so nothing more has to be reserved for it.
func (r *Reservation) overdrawn() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left < 0
}

// cover makes room for what was written beyond the reservation.
func (r *Reservation) cover(ctx context.Context) error {
	if !r.overdrawn() {
		return nil
	}
	return r.grow(ctx, 0, r.store.patience)
}

// Wrote says that n of the reserved bytes are on disk now, where everyone
// can measure them.
func (r *Reservation) Wrote(n int64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left -= max(n, 0)
	if r.settled-r.left >= settleBytes || r.left <= 0 {
		_ = r.settle() // says too much at worst
	}
}

// Close gives up what is left. Closing again does nothing.
func (r *Reservation) Close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := errors.Join(removeFile(r.file.Name()), r.file.Close())
	r.file = nil
	return err
}

// reservedBytes adds up the reservations of live processes.
func (s *Store) reservedBytes() (int64, error) {
	names, err := readNames(s.path(reserveFolder))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range names {
		f, err := openObject(s.path(reserveFolder, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := reservationBytes(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func reservationBytes(f *os.File) (int64, error) {
	// A shared lock is there to be had only when the writer is dead.
	dead, err := sys.TryFlock(f, unix.LOCK_SH)
	if dead || err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, nil // its writer has just begun
	}
	const most = 1 << 60
	return int64(min(binary.LittleEndian.Uint64(b[:]), most)), nil
}
