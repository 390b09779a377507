package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// Collect removes the objects that nothing names and nobody uses, and what
// dead processes left behind. It runs beside users of the store and never
// makes them wait. It returns how many bytes of objects it removed.
//
// The order is what makes it safe: condemn, under an exclusive lock that shows
// that nobody holds a lease; then read all that names objects; then move away
// what is condemned, unnamed and, again under an exclusive lock, still
// condemned. A user takes the lease and removes the flag before it names an
// object, so whatever it names is either seen by the reading or not condemned
// any more. The model in docs/design/store.md shows that no step can go.
func (s *Store) Collect(ctx context.Context) (freedBytes int64, err error) {
	unlock, err := s.lockGC(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect: %w", err)
	}
	defer unlock()
	freed, err := s.collect(ctx)
	if err != nil {
		return freed, fmt.Errorf("collect: %w", err)
	}
	return freed, nil
}

// CollectGarbage is Collect for who just took names away: if somebody else is
// collecting, it leaves that to them.
func (s *Store) CollectGarbage(ctx context.Context) (freedBytes int64, err error) {
	if err := s.writable(); err != nil {
		return 0, fmt.Errorf("collect: %w", err)
	}
	w, err := s.tryWorkAt(s.path("lock", "gc"))
	if err != nil {
		return 0, fmt.Errorf("collect: %w", err)
	}
	if w == nil {
		return 0, nil
	}
	defer w.Done()
	freed, err := s.collect(ctx)
	if err != nil {
		return freed, fmt.Errorf("collect: %w", err)
	}
	return freed, nil
}

// lockGC waits until this process is the only one that collects. It goes on
// beside a collector that shows no sign of life: one that was stopped, or
// somebody who only reads the store and holds the lock. The token on the flags
// keeps two collectors apart (docs/design/store.md, the model).
func (s *Store) lockGC(ctx context.Context) (unlock func(), err error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("store.gc.lock"); err != nil {
		return nil, err
	}
	if broken("twogc") {
		return func() {}, nil
	}
	w, err := s.workAt(ctx, s.path("lock", "gc"), nil)
	if err != nil {
		return nil, err
	}
	return w.Done, nil
}

// A collection is one run of the collector.
type collection struct {
	store *Store
	// token tells this run's flags from those of a run that was killed.
	token string
	// seal is a flag of this run, "" before there is one.
	seal      string
	named     map[object]bool // before condemning
	condemned []condemned
	freed     int64
}

// condemned is an object with what its metadata says: it never changes, so that
// reading it once is enough.
type condemned struct {
	object
	bytes int64
	over  int // trees below
}

// describe says what there is to know of o before it is condemned; no, if it is of a
// format that this den does not know.
func (s *Store) describe(o object) (c condemned, known bool) {
	c.object = o
	if o.kind != kindLayer {
		c.bytes = s.objectBytes(o)
		return c, true
	}
	meta, err := readMeta(s.path(o.rel()))
	if err != nil { // a damaged one lies over nothing
		return c, !s.ofLaterFormat(o)
	}
	c.bytes, c.over = meta.diskBytes(), len(meta.Over)
	return c, meta.Format == ""
}

func (s *Store) collect(ctx context.Context) (_ int64, err error) {
	c := &collection{store: s, token: rand.Text()}
	if err := c.condemn(ctx); err != nil {
		return 0, err
	}
	live := c.named
	if !broken("markfirst") {
		live, err = s.mark(ctx)
	}
	if err == nil {
		err = c.sweep(ctx, live)
	}
	err = errors.Join(err, s.reap(ctx))
	s.collected()
	return c.freed, err
}

// mark reads all that names objects.
func (s *Store) mark(ctx context.Context) (map[object]bool, error) {
	c, err := s.newClosure()
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("store.gc.mark"); err != nil {
		return nil, err
	}
	add := func(r root) error { return c.add(r.Record) }
	if err := s.roots(ctx, add); err != nil {
		return nil, err
	}
	if err := s.records(ctx, add); err != nil {
		return nil, err
	}
	return c.live, failpoint.Hit("store.gc.marked")
}

// condemn flags every object that nobody uses. An object that is named now is
// left out, to save work: it will be named, or used, or unused in the next run.
func (c *collection) condemn(ctx context.Context) error {
	var err error
	if c.named, err = c.store.mark(ctx); err != nil {
		return err
	}
	return c.store.objects(ctx, func(o object) error {
		if c.named[o] {
			return nil
		}
		return c.ifUnused(o, func() error {
			described, known := c.store.describe(o)
			if !known {
				return nil
			}
			if err := failpoint.Hit("store.gc.condemn"); err != nil {
				return err
			}
			if err := c.flag(o); err != nil {
				return err
			}
			c.condemned = append(c.condemned, described)
			return nil
		})
	})
}

// flag condemns o. The flag is a symbolic link, which carries the token in one
// system call, and one more name of the run's first: that takes no inode, so it costs
// half, and works on a disk that is full.
func (c *collection) flag(o object) error {
	path := c.store.path("condemned", o.flag())
	for {
		err := unix.Linkat(unix.AT_FDCWD, c.seal, unix.AT_FDCWD, path, 0)
		switch {
		case errors.Is(err, unix.EEXIST):
			err = removeFile(path) // of a run that was killed
		case c.seal == "", errors.Is(err, unix.ENOENT), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM):
			// The first one; another collector took it away; ext4 gives a file 65,000
			// names; a file system without hard links makes it the only one.
			return c.firstFlag(path)
		case err == nil:
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// firstFlag makes a flag that is a file of its own, of which the next ones are names.
func (c *collection) firstFlag(path string) error {
	c.seal = path
	err := os.Symlink(c.token, path)
	if errors.Is(err, unix.ENOSPC) && c.store.dropBallast() {
		err = os.Symlink(c.token, path)
	}
	if errors.Is(err, os.ErrExist) {
		if err = removeFile(path); err == nil {
			err = os.Symlink(c.token, path)
		}
	}
	return err
}

// sweep removes the condemned objects that are not live, those above before those
// below, so that what is there at any moment has what it lies over.
func (c *collection) sweep(ctx context.Context, live map[object]bool) error {
	c.condemned = slices.DeleteFunc(c.condemned, func(o condemned) bool { return live[o.object] })
	slices.SortStableFunc(c.condemned, func(a, b condemned) int { return cmp.Compare(b.over, a.over) })
	for _, o := range c.condemned {
		if ctx.Err() != nil {
			return context.Cause(ctx) // reap takes the flags away
		}
		if err := c.ifUnused(o.object, func() error { return c.remove(o) }); err != nil {
			return err
		}
	}
	return nil
}

// remove moves o, which is locked exclusively, away if it is still condemned.
func (c *collection) remove(o condemned) error {
	flag := c.store.path("condemned", o.flag())
	token, err := os.Readlink(flag)
	if errors.Is(err, os.ErrNotExist) || err == nil && token != c.token && !broken("twogc") {
		if !broken("nocondemn") {
			return nil // rescued
		}
		err = nil
	}
	if err != nil {
		return err
	}
	if err := failpoint.Hit("store.gc.sweep"); err != nil {
		return err
	}
	if _, err := c.store.moveToTrash(c.store.path(o.rel())); err != nil {
		return err
	}
	c.freed += o.bytes
	if err := failpoint.Hit("store.gc.unflag"); err != nil {
		return err
	}
	return removeFile(flag)
}

// ifUnused calls fn with o locked exclusively, unless somebody uses it. It
// never waits.
func (c *collection) ifUnused(o object, fn func() error) error {
	err := c.store.ifUnused(c.store.path(o.rel()), fn)
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	return nil
}

func (s *Store) ifUnused(path string, fn func() error) error {
	f, err := openObject(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	ok, err := sys.TryFlock(f, unix.LOCK_EX)
	if !ok || err != nil {
		return err
	}
	ok, err = sys.SameInode(f, path)
	if !ok || err != nil {
		return err
	}
	return fn()
}

// reap removes what dead processes left: flags, drafts, locks, trash. The
// caller is the only collector.
func (s *Store) reap(ctx context.Context) error {
	if err := failpoint.Hit("store.gc.reap"); err != nil {
		return err
	}
	// Flags are this run's or a dead one's; without them objects just live on.
	if err := s.eachName(ctx, "condemned", removeFile); err != nil {
		return err
	}
	if err := failpoint.Hit("store.gc.drafts"); err != nil {
		return err
	}
	err := s.eachName(ctx, "tmp", func(path string) error {
		return s.ifUnused(path, func() error {
			_, err := s.moveToTrash(path)
			return err
		})
	})
	if err != nil {
		return err
	}
	if err := failpoint.Hit("store.gc.locks"); err != nil {
		return err
	}
	err = s.eachName(ctx, "work", func(path string) error {
		return s.ifUnused(path, func() error { return removeFile(path) })
	})
	if err != nil {
		return err
	}
	err = s.eachName(ctx, reserveFolder, func(path string) error {
		return s.ifUnused(path, func() error { return removeFile(path) })
	})
	if err != nil {
		return err
	}
	if err := failpoint.Hit("store.gc.trash"); err != nil {
		return err
	}
	if err := s.eachName(ctx, "trash", sys.RemoveTree); err != nil {
		return err
	}
	return s.eachName(ctx, ".", s.reapProbe)
}

// probeLife is far beyond the milliseconds that a probe takes.
const probeLife = time.Hour

// reapProbe removes what a probe left that was killed.
func (s *Store) reapProbe(path string) error {
	if !strings.HasPrefix(filepath.Base(path), probePrefix) {
		return nil
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && time.Since(info.ModTime()) < probeLife {
		return nil
	}
	if err != nil {
		return err
	}
	return sys.RemoveTree(path)
}

func (s *Store) eachName(ctx context.Context, folder string, fn func(path string) error) error {
	names, err := readNames(s.path(folder))
	if err != nil {
		return err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fn(filepath.Join(s.path(folder), name)); err != nil {
			return err
		}
	}
	return nil
}
