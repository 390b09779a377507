package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// The ways to share a cache mount, as in RUN --mount=type=cache,sharing=.
const (
	SharingShared  = "shared"  // with everyone at once
	SharingPrivate = "private" // a tree that nobody else uses meanwhile
	SharingLocked  = "locked"  // one at a time
)

// instant is for how long trees that are looked at may seem to be in use: who
// looks at one holds its lock for some microseconds, but may have to wait for a
// processor just then.
const instant = 250 * time.Millisecond

// maxPrivate bounds the trees of one cache mount.
const maxPrivate = 1 << 12

// A CacheMountRequest asks for the mutable tree called ID.
type CacheMountRequest struct {
	ID string
	// Sharing is one of the three; empty is shared.
	Sharing string
	// Init, if there is one, fills a tree that was just made, before anybody
	// else sees it.
	Init func(dir string) error
}

// A CacheMount is a mutable tree that outlives builds, held until Close.
type CacheMount struct {
	dir   string
	fresh bool
	file  *os.File
	refs  *atomic.Int32 // handles of this tree that are open
	end   func()        // to show that they are alive
	once  sync.Once
}

// CacheMounts takes all the mounts of a step, one for each request. It waits
// where sharing demands it, after calling waiting (if there is one) once.
// Requests with one ID get one tree, held in the strictest of their ways.
func (s *Store) CacheMounts(ctx context.Context, reqs []CacheMountRequest, waiting func()) ([]*CacheMount, error) {
	wanted, err := mergeRequests(reqs)
	if err != nil {
		return nil, err
	}
	held := map[string]*CacheMount{}
	release := func() error {
		var errs []error
		for _, c := range held {
			c.end()
			errs = append(errs, c.file.Close())
		}
		return errors.Join(errs...)
	}
	once := func() {
		if waiting != nil {
			waiting()
			waiting = nil
		}
	}
	// In sorted order: two steps that want the same two never wait for each
	// other.
	for _, r := range wanted {
		c, err := s.cacheMount(ctx, r, once)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cache mount %.200s: %w", r.ID, err), release())
		}
		held[r.ID] = c
	}
	out := make([]*CacheMount, len(reqs))
	for i, r := range reqs {
		c := held[r.ID]
		c.refs.Add(1)
		out[i] = &CacheMount{dir: c.dir, fresh: c.fresh, file: c.file, refs: c.refs, end: c.end}
	}
	return out, nil
}

// strictness orders the ways of sharing.
var strictness = []string{SharingShared, SharingPrivate, SharingLocked}

func mergeRequests(reqs []CacheMountRequest) ([]CacheMountRequest, error) {
	byID := map[string]CacheMountRequest{}
	for _, r := range reqs {
		if r.Sharing == "" {
			r.Sharing = SharingShared
		}
		level := slices.Index(strictness, r.Sharing)
		if level < 0 {
			return nil, fmt.Errorf("cache mount %.200s: sharing %q: %w", r.ID, r.Sharing, errdefs.ErrInvalidArgument)
		}
		if first, ok := byID[r.ID]; ok {
			r.Sharing = strictness[max(level, slices.Index(strictness, first.Sharing))]
			if first.Init != nil {
				r.Init = first.Init
			}
		}
		byID[r.ID] = r
	}
	out := make([]CacheMountRequest, 0, len(byID))
	for _, r := range byID {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b CacheMountRequest) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (s *Store) cacheMountRel(id string) string {
	return filepath.Join("cachemount", s.class, hexSum(id))
}

func (s *Store) cacheMount(ctx context.Context, r CacheMountRequest, waiting func()) (*CacheMount, error) {
	how := unix.LOCK_SH
	if r.Sharing == SharingLocked {
		how = unix.LOCK_EX
	}
	first := 0
	if r.Sharing != SharingPrivate {
		c, err := s.openCacheMount(r, 0, how, func(f *os.File) error { return s.waitCacheMount(ctx, f, how, waiting) })
		if err == nil || !errors.Is(err, errBusy) {
			return c, err
		}
		first = 1 // whoever holds it shows no sign of life: a tree of one's own does no harm
	}
	// Who lists or collects has one exclusively for an instant. All of them together are waited for no longer.
	deadline := time.Now().Add(instant)
	lock := func(f *os.File) error { return lockWithin(ctx, f, unix.LOCK_EX, time.Until(deadline)) }
	for n := first; n < maxPrivate; n++ {
		c, err := s.openCacheMount(r, n, unix.LOCK_EX, lock)
		if err == nil || !errors.Is(err, errBusy) {
			return c, err
		}
	}
	return nil, fmt.Errorf("%d trees are in use: %w", maxPrivate, errdefs.ErrUnavailable)
}

// waitCacheMount waits for the lock of f. Its holders move the time of f every
// now and then; errBusy is for one that does not.
func (s *Store) waitCacheMount(ctx context.Context, f *os.File, how int, waiting func()) error {
	ok, err := sys.TryFlock(f, how)
	if ok || err != nil {
		return err
	}
	waiting()
	last, since := mtimeOf(f), time.Now()
	for p := newPoll(); ; {
		if err := p.wait(ctx); err != nil {
			return err
		}
		if ok, err := sys.TryFlock(f, how); ok || err != nil {
			return err
		}
		if now := mtimeOf(f); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > s.patience {
			return errBusy
		}
	}
}

func mtimeOf(f *os.File) unix.Timespec {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return unix.Timespec{}
	}
	return st.Mtim
}

// heldCacheMount is the handle of the locked wrapper directory f, whose time it
// moves to show that its holder is alive.
func heldCacheMount(f *os.File, path string, fresh bool) *CacheMount {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(bumpEvery)
		defer t.Stop()
		for {
			now := time.Now()
			_ = os.Chtimes(path, now, now) // a hint: at worst somebody takes another tree
			select {
			case <-stop:
				return
			case <-t.C:
			}
		}
	}()
	end := sync.OnceFunc(func() { close(stop); <-stopped })
	return &CacheMount{dir: filepath.Join(path, fsDir), fresh: fresh, file: f, refs: new(atomic.Int32), end: end}
}

// openCacheMount takes the nth tree of r by lock, which says errBusy where that takes too
// long, and makes one, locked with how, when it is not there.
func (s *Store) openCacheMount(r CacheMountRequest, n, how int, lock func(*os.File) error) (*CacheMount, error) {
	rel := filepath.Join(s.cacheMountRel(r.ID), strconv.Itoa(n))
	path := s.path(rel)
	for {
		f, err := openObject(path)
		if errors.Is(err, fs.ErrNotExist) {
			c, err := s.newCacheMount(r, rel, how)
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			return c, err
		}
		if err != nil {
			return nil, err
		}
		same := false
		if err = lock(f); err == nil {
			same, err = sys.SameInode(f, path)
		}
		if same {
			return heldCacheMount(f, path, false), nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// newCacheMount makes an empty tree, born locked with how.
func (s *Store) newCacheMount(r CacheMountRequest, rel string, how int) (*CacheMount, error) {
	f, err := s.newTmp(how, createDir)
	if err != nil {
		return nil, err
	}
	tmp := f.Name()
	if err = failpoint.Hit("store.cachemount.fill"); err == nil {
		err = s.fillCacheMount(tmp, r)
	}
	if err == nil {
		err = failpoint.Hit("store.cachemount.rename")
	}
	if err == nil {
		err = s.renameNew(tmp, s.path(rel))
	}
	if err != nil {
		return nil, errors.Join(err, sys.RemoveTree(tmp), f.Close())
	}
	return heldCacheMount(f, s.path(rel), true), nil
}

func (s *Store) fillCacheMount(wrapper string, r CacheMountRequest) error {
	dir := filepath.Join(wrapper, fsDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// As BuildKit makes it, whatever the umask.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	// For humans and for den store df; the name is a hash.
	if err := os.WriteFile(filepath.Join(wrapper, "id"), []byte(r.ID), 0o644); err != nil {
		return err
	}
	if r.Init != nil {
		return r.Init(dir)
	}
	return nil
}

// renameNew publishes something mutable, which needs no epoch, and makes the
// folder for it.
func (s *Store) renameNew(from, to string) error {
	err := sys.RenameNoReplace(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		if err := failpoint.Hit("store.cachemount.mkdir"); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		err = sys.RenameNoReplace(from, to)
	}
	return err
}

func (s *Store) touchFile(f *os.File, path string) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) == nil {
		s.touch(path, st.Mtim)
	}
}

// Dir is the tree.
func (c *CacheMount) Dir() string { return c.dir }

// Fresh reports whether the call that returned it made the tree.
func (c *CacheMount) Fresh() bool { return c.fresh }

// Hold is what has to stay open while the tree is mounted. It belongs to the
// cache mount.
func (c *CacheMount) Hold() []*os.File { return []*os.File{c.file} }

// Close gives the tree back. Closing again does nothing.
func (c *CacheMount) Close() (err error) {
	c.once.Do(func() {
		if c.refs.Add(-1) == 0 {
			c.end()
			err = c.file.Close()
		}
	})
	return err
}
