package durable

import (
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
	// current holds the markers of the epoch that is open, oldPrefix begins
	// the names of those that a syncer closed and deadPrefix of those whose
	// objects are on disk.
	current    = "now"
	oldPrefix  = "old-"
	deadPrefix = "dead-"

	// maxMarker is the length of a file name on Linux (NAME_MAX).
	maxMarker = 255

	// lockWait bounds how long a publisher waits for a syncer, which holds the
	// lock for two system calls unless somebody stopped it.
	lockWait = 2 * time.Second
	// wedgedFor is how long the lock is not waited for after it could not be had.
	wedgedFor = time.Minute
	// syncEvery is how often a process that goes on publishing syncs. The
	// kernel by itself writes dirty pages back after as long.
	syncEvery = 30 * time.Second
)

// A Log is the record of what this kernel published in one directory. It is
// safe for concurrent use, by any number of processes.
type Log struct {
	mode Mode
	fsys *os.File // what syncfs syncs
	dir  *os.File // sync/<boot id>
	lock *os.File // shared by publishers, exclusive for the end of an epoch

	mu       sync.Mutex
	entered  int // publications that rely on lock being held
	dirty    bool
	lastSync time.Time
	wedged   time.Time // when the lock could not be had
}

// Open opens the log of the kernel named boot in dir, and makes it when it is
// not there. The file system that holds dir is the one that is synced.
func Open(dir, boot string, mode Mode) (*Log, error) {
	l := &Log{mode: mode, lastSync: time.Now()}
	if mode == None {
		return l, nil
	}
	path := filepath.Join(dir, boot)
	if err := failpoint.Hit("durable.open.mkdir"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(path, current), 0o755); err != nil {
		return nil, fmt.Errorf("open epochs: %w", err)
	}
	var err error
	if l.dir, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open epochs: %w", err)
	}
	l.fsys = l.dir
	if began, ok := begun(filepath.Join(path, current)); ok {
		l.lastSync = began
	}
	if l.lock, err = openLock(path, "lock"); err != nil {
		return nil, errors.Join(fmt.Errorf("open epochs: %w", err), l.dir.Close())
	}
	return l, nil
}

// begun is when the open epoch began, if something was published in it. Processes that
// are killed leave no syncer behind: the next one that publishes starts it for them.
func begun(epoch string) (time.Time, bool) {
	birth, changed, ok := times(epoch)
	return birth, ok && changed.After(birth)
}

// times are an epoch's, where the file system knows when its files were born.
func times(epoch string) (birth, changed time.Time, ok bool) {
	var st unix.Statx_t
	const want = unix.STATX_BTIME | unix.STATX_MTIME
	if err := unix.Statx(unix.AT_FDCWD, epoch, 0, want, &st); err != nil || st.Mask&want != want {
		return time.Time{}, time.Time{}, false
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)), time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)), true
}

func openLock(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
}

// Publish calls publish, which must make object visible, so that a power cut
// can not leave a torn object unnoticed. object is a clean relative path without
// a percent sign, which Suspects returns. One that is too long for the name of a marker
// is on disk before it is visible.
func (l *Log) Publish(object string, publish func() error) error {
	switch l.mode {
	case None:
		return publish()
	case Strict:
		if err := l.syncfs(); err != nil {
			return err
		}
		err := publish()
		l.mu.Lock()
		l.dirty = true // its name is not on disk before the next sync
		l.mu.Unlock()
		return err
	}
	ok := len(object) <= maxMarker
	var err error
	if ok {
		ok, err = l.enter()
	}
	if err != nil {
		return err
	}
	if !ok {
		// A syncer was stopped half-way, or there can be no marker. Do its work for
		// this one object.
		if err := l.syncfs(); err != nil {
			return err
		}
		return publish()
	}
	if !broken("nomark") {
		err = l.mark(object)
	}
	if err == nil {
		err = publish()
	}
	return errors.Join(err, l.leave())
}

// enter takes the lock for one more publication of this process; false says
// that it can not be had.
func (l *Log) enter() (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entered == 0 {
		if err := failpoint.Hit("durable.publish.lock"); err != nil {
			return false, err
		}
		wait := lockWait
		if time.Since(l.wedged) < wedgedFor {
			wait = 0 // whoever held it then may hold it still
		}
		ok, err := tryFor(l.lock, unix.LOCK_SH, wait)
		if !ok && err == nil && wait > 0 {
			l.wedged = time.Now()
		}
		if !ok || err != nil {
			return false, err
		}
	}
	l.entered++
	l.dirty = true
	return true, nil
}

func (l *Log) leave() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entered--; l.entered > 0 {
		return nil
	}
	return sys.Flock(l.lock, unix.LOCK_UN)
}

// mark makes the marker of object in the current epoch.
func (l *Log) mark(object string) error {
	if err := failpoint.Hit("durable.publish.mark"); err != nil {
		return err
	}
	name := filepath.Join(l.dir.Name(), current, escape(object))
	for {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		if err == nil {
			return unix.Close(fd)
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "mark", Path: name, Err: err}
		}
		// The last syncer died between closing an epoch and opening the next.
		if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("mark %s: %w", object, err)
		}
	}
}

// tryFor polls for a lock of f for at most wait.
func tryFor(f *os.File, how int, wait time.Duration) (bool, error) {
	deadline := time.Now().Add(wait)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		ok, err := sys.TryFlock(f, how)
		if ok || err != nil || time.Now().After(deadline) {
			return ok, err
		}
		time.Sleep(pause)
	}
}

// Close closes the log. What it published is not synced by that; see Detach.
func (l *Log) Close() error {
	if l.mode == None {
		return nil
	}
	return errors.Join(l.lock.Close(), l.dir.Close())
}

// escape makes one file name of a path.
func escape(object string) string { return strings.ReplaceAll(object, "/", "%") }

func unescape(name string) (string, error) {
	object := strings.ReplaceAll(name, "%", "/")
	if !filepath.IsLocal(object) || filepath.Clean(object) != object {
		return "", fmt.Errorf("marker %.80q: malformed", name)
	}
	return object, nil
}
