package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

const (
	// busyWait bounds the wait for an object that somebody holds exclusively.
	// The collector does so for two system calls; only one that was stopped,
	// or a reader who means harm, does longer.
	busyWait = 2 * time.Second
	// wedgedFor is how long locks are given up sooner after one was not to be had.
	wedgedFor = time.Minute
	// touchEvery is how exact the time of last use is.
	touchEvery = time.Hour
	// touchUnderCap is the same where a cap evicts all the time.
	touchUnderCap = time.Second
)

// A lease is a shared lock on an object: while it is open, the collector
// leaves the object alone. One open file serves the whole process.
type lease struct {
	store *Store
	path  string
	file  *os.File
	info  unix.Stat_t
	refs  int // guarded by store.mu
}

// errBusy is an object that is there and can not be leased.
var errBusy = fmt.Errorf("held exclusively by another process: %w", errdefs.ErrUnavailable)

func missing(o fmt.Stringer) error { return fmt.Errorf("%s: %w", o, errdefs.ErrNotFound) }

// acquire takes a lease on o. The error is of class errdefs.ErrNotFound when o
// is not there, and errBusy when it can not be locked.
//
// Locking alone is not enough: the collector may have moved the object away
// before we got the lock, so path and inode must still agree; and it may have
// condemned the object before, so its flag is removed before the first use.
// Either omission was shown wrong by the model (docs/design/store.md).
func (s *Store) acquire(ctx context.Context, o object) (*lease, error) {
	path := s.path(o.rel())
	if l := s.shareLease(path); l != nil {
		return l, nil
	}
	if s.suspect(o.rel()) || s.foreign && o.inClass(s.class) {
		return nil, missing(o)
	}
	for {
		if err := failpoint.Hit("store.acquire.open"); err != nil {
			return nil, fmt.Errorf("acquire %s: %w", o, err)
		}
		f, err := openObject(path)
		if errors.Is(err, unix.ENOENT) {
			return nil, missing(o)
		}
		if err != nil {
			return nil, fmt.Errorf("acquire %s: %w", o, err)
		}
		ok, err := s.lockObject(ctx, f, path, o)
		if err != nil || !ok {
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return nil, fmt.Errorf("acquire %s: %w", o, err)
		}
		if ok {
			return s.addLease(path, f)
		}
	}
}

// lockObject locks f, rescues o from the collector and says whether path
// still names it.
func (s *Store) lockObject(ctx context.Context, f *os.File, path string, o object) (bool, error) {
	if err := failpoint.Hit("store.acquire.lock"); err != nil {
		return false, err
	}
	if err := s.lockShortly(ctx, f, unix.LOCK_SH); err != nil {
		return false, err
	}
	same, err := sys.SameInode(f, path)
	if err != nil || !same && !broken("norecheck") {
		return false, err
	}
	if err := failpoint.Hit("store.acquire.rescue"); err != nil {
		return false, err
	}
	return true, s.rescue(o)
}

// rescue removes the collector's flag from o, on which we hold a lease.
func (s *Store) rescue(o object) error {
	// Who may only read can publish nothing that names the object: the lease is
	// all that he needs.
	if s.readOnly || broken("norescue") || broken("laterescue") {
		return nil
	}
	err := unix.Unlink(s.path("condemned", o.flag()))
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("rescue %s: %w", o, err)
}

// lockShortly is waitLock with an end: errBusy after a while. Somebody who
// holds one lock for so long holds others, too, so that is not waited for each
// time.
func (s *Store) lockShortly(ctx context.Context, f *os.File, how int) error {
	wait := s.busyWait
	if last := s.wedged.Load(); last > 0 && time.Since(time.Unix(0, last)) < wedgedFor {
		wait /= 20
	}
	err := lockWithin(ctx, f, how, wait)
	if errors.Is(err, errBusy) {
		s.wedged.Store(time.Now().UnixNano())
	}
	return err
}

func lockWithin(ctx context.Context, f *os.File, how int, patience time.Duration) error {
	if ok, err := sys.TryFlock(f, how); ok || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errBusy)
	defer cancel()
	return waitLock(ctx, f, how, nil)
}

func openObject(path string) (*os.File, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// shareLease returns one more reference to the process's lease on path, or nil.
func (s *Store) shareLease(path string) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[path]
	if l != nil {
		l.refs++
	}
	return l
}

// addLease makes the locked f the process's lease on path, unless another
// goroutine was faster.
func (s *Store) addLease(path string, f *os.File) (*lease, error) {
	l := &lease{store: s, path: path, file: f, refs: 1}
	if err := unix.Fstat(int(f.Fd()), &l.info); err != nil {
		return nil, errors.Join(fmt.Errorf("lease %s: %w", path, err), f.Close())
	}
	s.mu.Lock()
	if first := s.leases[path]; first != nil {
		first.refs++
		s.mu.Unlock()
		return first, f.Close()
	}
	s.leases[path] = l
	s.mu.Unlock()
	s.touch(path, l.info.Mtim)
	return l, nil
}

// touch notes the use of path, whose time is last, for the policy of the
// collector.
func (s *Store) touch(path string, last unix.Timespec) {
	now, every := time.Now(), touchEvery
	if s.budget.set() {
		every = touchUnderCap
	}
	if s.readOnly || now.Sub(time.Unix(last.Unix())) < every {
		return
	}
	// Only a hint: a failure costs an eviction that comes too early.
	_ = os.Chtimes(path, now, now)
}

// touchName is touch for who does not know the time of last use.
func (s *Store) touchName(path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil {
		s.touch(path, st.Mtim)
	}
}

// release gives back one reference. The lock goes with the last copy of the
// file, which may live on in the holder of a mount.
func (l *lease) release() error {
	s := l.store
	s.mu.Lock()
	l.refs--
	last := l.refs == 0
	if last {
		delete(s.leases, l.path)
	}
	s.mu.Unlock()
	if last {
		if broken("laterescue") {
			lateRescue(l)
		}
		return l.file.Close()
	}
	return nil
}
