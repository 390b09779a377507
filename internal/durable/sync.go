package durable

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// At most one process syncs and one more waits to: it will cover whatever was
// published before it closes the epoch, so others need not queue behind it.
const (
	syncing = "syncing"
	queued  = "queued"
)

// Detach starts a process that syncs what was published until now, if this
// process published anything since its last sync, and returns without waiting
// for it. No harm is done when it fails: what is not synced stays suspect. In
// strict mode it syncs before it returns.
func (l *Log) Detach() error {
	l.mu.Lock()
	dirty := l.dirty
	l.dirty, l.lastSync = false, time.Now()
	l.mu.Unlock()
	if !dirty || l.mode == None {
		return nil
	}
	if l.mode == Strict {
		return l.syncfs()
	}
	next, err := openLock(l.dir.Name(), queued)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer next.Close()
	if ok, err := sys.TryFlock(next, unix.LOCK_EX); !ok || err != nil {
		return err
	}
	return l.detach(next)
}

// Leave is Detach for a process that ends, whose number is pid. Process 1 of a container starts none: the kernel would kill it at
// once, but wait with the container's end until its sync has returned. The epoch is for the next process that publishes, if that
// can see how old it is.
func (l *Log) Leave(pid int) error {
	if pid == 1 && l.mode == Epoch {
		if _, _, ok := times(filepath.Join(l.dir.Name(), current)); ok {
			return nil
		}
	}
	return l.Detach()
}

// DetachIfDue is Detach for processes that live long: it does nothing until
// the last sync is a while ago.
func (l *Log) DetachIfDue() error {
	l.mu.Lock()
	due := l.dirty && time.Since(l.lastSync) >= syncEvery
	l.mu.Unlock()
	if !due {
		return nil
	}
	return l.Detach()
}

// detach hands the held lock next to the process that syncs.
func (l *Log) detach(next *os.File) error {
	running, err := openLock(l.dir.Name(), syncing)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer running.Close()
	// An open file of its own: locks belong to the open file, and the child
	// would share that of l.lock.
	lock, err := openLock(l.dir.Name(), "lock")
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer lock.Close()

	old := oldPrefix + rand.Text()
	p := sys.NewDetached(l.dir, next, running, lock)
	p.Flock(running, unix.LOCK_EX)
	p.Flock(next, unix.LOCK_UN)
	p.Flock(lock, unix.LOCK_EX)
	p.TryRename(l.dir, current, old)
	p.TryMkdir(l.dir, current)
	p.Flock(lock, unix.LOCK_UN)
	olds, err := l.list()
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if !broken("nosync") {
		p.Syncfs(l.dir)
	}
	// One rename retires an epoch, whatever was added to it meanwhile. What
	// can not be removed here, a later syncer finds.
	for name := range olds {
		switch {
		case name == current:
			p.TryRename(l.dir, old, deadPrefix+old)
		case strings.HasPrefix(name, oldPrefix):
			p.TryRename(l.dir, name, deadPrefix+name)
		}
	}
	// Else a power cut could bring the epoch back, and all of it be suspect
	// once more. This writes a journal, not what others wrote meanwhile.
	p.Fsync(l.dir)
	for name, markers := range olds {
		dead := name
		switch {
		case name == current:
			dead = deadPrefix + old
		case strings.HasPrefix(name, oldPrefix):
			dead = deadPrefix + name
		}
		for _, m := range markers {
			p.TryUnlink(l.dir, dead+"/"+m)
		}
		p.TryRmdir(l.dir, dead)
	}
	return p.Start()
}

// list returns the markers of every epoch.
func (l *Log) list() (map[string][]string, error) {
	return listEpochs(l.dir.Name())
}

func listEpochs(dir string) (map[string][]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	epochs := map[string][]string{}
	for _, e := range entries {
		name := e.Name()
		if name != current && !strings.HasPrefix(name, oldPrefix) && !strings.HasPrefix(name, deadPrefix) {
			continue
		}
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // a syncer was faster
		}
		if err != nil {
			return nil, err
		}
		markers, err := f.Readdirnames(-1)
		closed := f.Close()
		if errors.Is(err, os.ErrNotExist) {
			continue // it was faster after the open: a removed directory has no entries to read
		}
		if err := errors.Join(err, closed); err != nil {
			return nil, err
		}
		epochs[name] = markers
	}
	return epochs, nil
}

// Sync closes the epoch and writes it to disk before it returns.
func (l *Log) Sync() error {
	if l.mode == None {
		return nil
	}
	l.mu.Lock()
	l.dirty, l.lastSync = false, time.Now()
	l.mu.Unlock()
	if l.mode == Strict {
		return l.syncfs()
	}
	old := oldPrefix + rand.Text()
	err := l.endEpoch(old)
	if errors.Is(err, errHeld) {
		return sys.Syncfs(l.fsys)
	}
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	epochs, err := l.list()
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := failpoint.Hit("durable.sync.syncfs"); err != nil {
		return err
	}
	if err := l.syncfs(); err != nil {
		return err
	}
	if err := failpoint.Hit("durable.sync.retire"); err != nil {
		return err
	}
	var dead []string
	for name := range epochs {
		if name == current {
			continue
		}
		path, err := l.retire(name)
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		dead = append(dead, path)
	}
	if err := l.dir.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	for _, path := range dead {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	return nil
}

func (l *Log) syncfs() error {
	if broken("nosync") {
		return nil
	}
	return sys.Syncfs(l.fsys)
}

// Flush is Sync in strict mode and nothing in the others: for what should not
// wait for the end of an epoch there.
func (l *Log) Flush() error {
	if l.mode != Strict {
		return nil
	}
	return l.Sync()
}

var errHeld = errors.New("the epoch's lock is held")

// endEpoch names the current epoch old and begins the next.
func (l *Log) endEpoch(old string) error {
	lock, err := openLock(l.dir.Name(), "lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := failpoint.Hit("durable.sync.lock"); err != nil {
		return err
	}
	// Somebody who only reads could hold it for ever. Without it nothing is
	// retired, and what is synced stays suspect.
	if ok, err := tryFor(lock, unix.LOCK_EX, lockWait); !ok || err != nil {
		return cmp.Or(err, errHeld)
	}
	if err := failpoint.Hit("durable.sync.end"); err != nil {
		return err
	}
	now := filepath.Join(l.dir.Name(), current)
	if err := os.Rename(now, filepath.Join(l.dir.Name(), old)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := failpoint.Hit("durable.sync.begin"); err != nil {
		return err
	}
	return os.Mkdir(now, 0o755)
}

// retire renames a closed epoch whose objects are on disk, and returns its path.
func (l *Log) retire(name string) (string, error) {
	from := filepath.Join(l.dir.Name(), name)
	if !strings.HasPrefix(name, oldPrefix) {
		return from, nil
	}
	to := filepath.Join(l.dir.Name(), deadPrefix+name)
	if err := os.Rename(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return to, nil
}
