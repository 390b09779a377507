package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// EachCacheMount calls fn with each cache mount of this process's ownership class
// and the directory of its shared tree, which nobody else has meanwhile. Those that
// somebody uses are not waited for: they are returned. The trees that steps with
// sharing=private have for themselves are left out.
func (s *Store) EachCacheMount(ctx context.Context, fn func(id, dir string) error) (busy []string, err error) {
	found, err := s.mutables(ctx, filepath.Join("cachemount", s.class, "*", "0"))
	if err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	for _, m := range found {
		c, err := s.takeCacheMount(ctx, m.rel)
		if errors.Is(err, os.ErrNotExist) {
			continue // pruned meanwhile
		}
		if errors.Is(err, errBusy) {
			busy = append(busy, m.id)
			continue
		}
		if err == nil {
			err = errors.Join(fn(m.id, c.dir), c.Close())
		}
		if err != nil {
			return busy, fmt.Errorf("cache mount %.200s: %w", m.id, err)
		}
	}
	return busy, nil
}

// takeCacheMount takes an existing tree exclusively; errBusy if somebody has it.
func (s *Store) takeCacheMount(ctx context.Context, rel string) (*CacheMount, error) {
	path := s.path(rel)
	f, err := openObject(path)
	if err != nil {
		return nil, err
	}
	if err = lockWithin(ctx, f, unix.LOCK_EX, instant); err == nil {
		var same bool
		if same, err = sys.SameInode(f, path); err == nil && !same {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c := heldCacheMount(f, path, false)
	c.refs.Add(1)
	return c, nil
}

// PutCacheMount makes the cache mount id and has fill write its tree, unless there
// is one: then that stays, and made is false.
func (s *Store) PutCacheMount(ctx context.Context, id string, fill func(watch *Watch, dir string) error) (made bool, err error) {
	mounts, err := s.CacheMounts(ctx, []CacheMountRequest{{ID: id, Init: func(dir string) error {
		watch, err := s.Watch(ctx, dir)
		if err != nil {
			return err
		}
		return errors.Join(fill(watch, dir), watch.Stop())
	}}}, nil)
	if err != nil {
		return false, err
	}
	return mounts[0].Fresh(), mounts[0].Close()
}
