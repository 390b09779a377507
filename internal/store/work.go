package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

const (
	// silence is how long a holder may show no sign of life before a waiter
	// does the work too, by the waiter's own clock.
	silence = 60 * time.Second
	// bumpEvery is how often a holder shows one.
	bumpEvery = 10 * time.Second
)

// A Work is the right to do something that others, in whatever process, wait
// for. It saves doing things twice and no more: publishing is idempotent, so
// correctness never depends on it.
type Work struct {
	store *Store
	file  *os.File // nil for a duplicate

	mu    sync.Mutex
	count uint64
	timer *time.Timer
	done  bool
}

// Work waits until nobody else does the work named by kind and key. It calls
// waiting, if there is one, once before it waits. When the holder was silent
// for a minute, it returns a Work that is Duplicate. Never wait for one while
// holding something that its holder may need, such as a worker slot.
func (s *Store) Work(ctx context.Context, kind, key string, waiting func()) (*Work, error) {
	w, err := s.workAt(ctx, s.path("work", workName(kind, key)), waiting)
	if err != nil {
		return nil, fmt.Errorf("work %s: %w", kind, err)
	}
	return w, nil
}

// workAt is Work with the lock file path.
func (s *Store) workAt(ctx context.Context, path string, waiting func()) (*Work, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	for {
		f, born, err := s.openWork(path)
		if err != nil {
			return nil, err
		}
		if born {
			return newWork(s, f), nil
		}
		got, err := s.waitWork(ctx, f, &waiting)
		if err == nil && got == silentHolder {
			return &Work{store: s}, f.Close()
		}
		same := false
		if err == nil {
			// Its last holder removed the file; whoever comes next makes another.
			same, err = sys.SameInode(f, path)
		}
		if same && got == gotLock {
			return newWork(s, f), nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// tryWorkAt is workAt that does not wait: nil when somebody else has it.
func (s *Store) tryWorkAt(path string) (*Work, error) {
	f, born, err := s.openWork(path)
	if err != nil {
		return nil, err
	}
	if born {
		return newWork(s, f), nil
	}
	ok, err := sys.TryFlock(f, unix.LOCK_EX)
	if ok {
		ok, err = sys.SameInode(f, path)
	}
	if !ok || err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return newWork(s, f), nil
}

// openWork opens the lock file path. One that it makes is born locked: there is
// no moment in which somebody who only reads the store could lock it first.
func (s *Store) openWork(path string) (f *os.File, born bool, err error) {
	for {
		if err := failpoint.Hit("store.work.open"); err != nil {
			return nil, false, err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if !errors.Is(err, os.ErrNotExist) {
			return f, false, err
		}
		if err := failpoint.Hit("store.work.lock"); err != nil {
			return nil, false, err
		}
		f, err = bornLocked(path)
		if err == nil {
			return f, true, nil
		}
		if errors.Is(err, os.ErrExist) {
			continue
		}
		// A file system without unnamed files.
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, unix.ENOSPC) && forRemoval(path) && s.dropBallast() {
			continue
		}
		return f, false, err
	}
}

// forRemoval reports whether the lock file path is one that who removes things needs, too.
func forRemoval(path string) bool {
	kind, _, _ := strings.Cut(filepath.Base(path), "-")
	return kind == "gc" || kind == "ref" || kind == "names"
}

// bornLocked makes the file path, locked exclusively before it has its name.
func bornLocked(path string) (*os.File, error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	if err = sys.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

var plainKey = shape{1, 128, lowerCase + digits, lowerCase + digits + "._-"}

func workName(kind, key string) string {
	if !plainKey.matches(key) {
		key = hexSum(key)
	}
	return kind + "-" + key
}

// What became of waiting for work.
type waited int

const (
	gotLock      waited = iota
	silentHolder        // its holder shows no sign of life
	otherFile           // the file is not the lock any more
)

// waitWork waits for the lock of f. Who only reads the store can hold it, too,
// but gives no sign of life.
func (s *Store) waitWork(ctx context.Context, f *os.File, waiting *func()) (waited, error) {
	if err := failpoint.Hit("store.work.lock"); err != nil {
		return 0, err
	}
	last, since := sign(f), time.Now()
	for p := newPoll(); ; {
		ok, err := sys.TryFlock(f, unix.LOCK_EX)
		if ok || err != nil {
			return gotLock, err
		}
		// A reader may have queued for the lock of a file that was removed.
		if same, err := sys.SameInode(f, f.Name()); !same || err != nil {
			return otherFile, err
		}
		if *waiting != nil {
			(*waiting)()
			*waiting = nil
		}
		if err := p.wait(ctx); err != nil {
			return 0, err
		}
		if now := sign(f); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > s.patience {
			return silentHolder, nil
		}
	}
}

// sign is the holder's sign of life: it changes.
func sign(f *os.File) uint64 {
	var b [8]byte
	// An empty file is a holder that has just begun.
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

func newWork(s *Store, f *os.File) *Work {
	w := &Work{store: s, file: f, count: sign(f)}
	w.timer = time.AfterFunc(bumpEvery, w.tick)
	return w
}

// tick shows that this process is alive, whatever the work waits for.
func (w *Work) tick() {
	w.Bump()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.timer.Reset(bumpEvery)
	}
}

// Duplicate reports whether somebody else holds the work and seems to hang.
// Then this process must not touch what only the holder may.
func (w *Work) Duplicate() bool { return w.file == nil }

// Bump shows those who wait that the work goes on. A process that is alive is
// taken to be at work, so calling it is not needed.
func (w *Work) Bump() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done || w.file == nil {
		return
	}
	w.count++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], w.count)
	// On a full disk others may do the work too, which is harmless.
	_, _ = w.file.WriteAt(b[:], 0)
}

// Done lets the next one work. Calling it again does nothing.
func (w *Work) Done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done || w.file == nil {
		return
	}
	w.done = true
	w.timer.Stop()
	// Removed while it is locked: who opened it before sees by the inode that
	// it is not the lock any more.
	_ = os.Remove(w.file.Name())
	// Unlocked and not just closed, because a child may hold a copy.
	_ = sys.Flock(w.file, unix.LOCK_UN)
	_ = w.file.Close()
}
