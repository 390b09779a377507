package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestWorkIsDoneByOneAtATime(t *testing.T) {
	s := tempStore(t)
	var busy, most atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				w, err := s.Work(t.Context(), "test", "key", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if n := busy.Add(1); n > most.Load() {
					most.Store(n)
				}
				w.Bump()
				busy.Add(-1)
				w.Done()
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
	if names, _ := readNames(s.path("work")); len(names) > 0 {
		t.Errorf("left over: %v", names)
	}
}

func TestWaitingForWorkIsAnnouncedOnce(t *testing.T) {
	s := tempStore(t)
	held, err := s.Work(t.Context(), "test", "any key: with / and spaces", nil)
	must(t, err)
	calls := 0
	w, err := s.Work(t.Context(), "test", "any key: with / and spaces", func() {
		calls++
		held.Done()
		held.Done()
	})
	must(t, err)
	defer w.Done()
	if calls != 1 || w.Duplicate() {
		t.Errorf("announced %d times, duplicate %v", calls, w.Duplicate())
	}
}

func TestWaitingForWorkEndsWithTheContext(t *testing.T) {
	s := tempStore(t)
	held, err := s.Work(t.Context(), "test", "key", nil)
	must(t, err)
	defer held.Done()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Work(ctx, "test", "key", cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSilentHolderIsDuplicated(t *testing.T) {
	s := tempStore(t)
	held, err := s.Work(t.Context(), "test", "key", nil)
	must(t, err)
	defer held.Done()
	s.patience = 50 * time.Millisecond
	w, err := s.Work(t.Context(), "test", "key", nil)
	must(t, err)
	defer w.Done()
	if !w.Duplicate() {
		t.Error("two hold the work")
	}
}

func TestHolderThatBumpsIsWaitedFor(t *testing.T) {
	s := tempStore(t)
	synctest.Test(t, func(t *testing.T) {
		held, err := s.Work(t.Context(), "test", "key", nil)
		must(t, err)
		held.timer.Stop() // which bumps, too
		started := make(chan struct{})
		var holder sync.WaitGroup
		defer holder.Wait()
		holder.Go(func() {
			<-started
			for range 3 * silence / bumpEvery { // three times the patience
				time.Sleep(bumpEvery)
				held.Bump()
			}
			held.Done()
		})
		w, err := s.Work(t.Context(), "test", "key", func() { close(started) })
		must(t, err)
		defer w.Done()
		if w.Duplicate() {
			t.Error("the holder was not silent")
		}
	})
}

func TestSharedCacheMountIsOneTree(t *testing.T) {
	a := tempStore(t)
	b := openStore(t, a.Root(), t.TempDir())
	req := []CacheMountRequest{{ID: "/root/.cache", Init: func(dir string) error { return os.Chmod(dir, 0o700) }}}
	first, err := a.CacheMounts(t.Context(), req, nil)
	must(t, err)
	defer first[0].Close()
	second, err := b.CacheMounts(t.Context(), req, nil)
	must(t, err)
	defer second[0].Close()
	if first[0].Dir() != second[0].Dir() || !first[0].Fresh() || second[0].Fresh() {
		t.Errorf("got %s (fresh %v) and %s (fresh %v)", first[0].Dir(), first[0].Fresh(), second[0].Dir(), second[0].Fresh())
	}
	if info, err := os.Stat(second[0].Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("Init was not seen: %v, %v", info.Mode(), err)
	}
}

func TestPrivateCacheMountsAreApartAndUsedAgain(t *testing.T) {
	s := tempStore(t)
	req := []CacheMountRequest{{ID: "x", Sharing: SharingPrivate}}
	first, err := s.CacheMounts(t.Context(), req, nil)
	must(t, err)
	second, err := s.CacheMounts(t.Context(), req, nil)
	must(t, err)
	if first[0].Dir() == second[0].Dir() {
		t.Error("one private tree for two")
	}
	must(t, errors.Join(first[0].Close(), second[0].Close()))
	third, err := s.CacheMounts(t.Context(), req, nil)
	must(t, err)
	defer third[0].Close()
	if third[0].Dir() != first[0].Dir() || third[0].Fresh() {
		t.Errorf("got %s, want the free %s", third[0].Dir(), first[0].Dir())
	}
}

func TestLockedCacheMountWaits(t *testing.T) {
	s := tempStore(t)
	locked := []CacheMountRequest{{ID: "x", Sharing: SharingLocked}}
	for name, other := range map[string][]CacheMountRequest{
		"locked": locked,
		"shared": {{ID: "x"}},
	} {
		first, err := s.CacheMounts(t.Context(), other, nil)
		must(t, err)
		calls := 0
		second, err := s.CacheMounts(t.Context(), locked, func() {
			calls++
			must(t, first[0].Close())
		})
		must(t, err)
		if calls != 1 {
			t.Errorf("%s: waited %d times", name, calls)
		}
		must(t, second[0].Close())
	}
}

func TestOneCacheMountAskedForTwiceIsLockedOnce(t *testing.T) {
	s := tempStore(t)
	reqs := []CacheMountRequest{{ID: "b"}, {ID: "a", Sharing: SharingLocked}, {ID: "b", Sharing: SharingLocked}}
	mounts, err := s.CacheMounts(t.Context(), reqs, nil)
	must(t, err)
	if mounts[0].Dir() != mounts[2].Dir() || mounts[0].Dir() == mounts[1].Dir() {
		t.Error("the result is not parallel to the requests")
	}
	must(t, mounts[0].Close())
	// b is still held by its second handle.
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.CacheMounts(ctx, reqs[:1], cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to wait", err)
	}
	must(t, errors.Join(mounts[1].Close(), mounts[2].Close()))
	again, err := s.CacheMounts(t.Context(), reqs, nil)
	must(t, err)
	for _, m := range again {
		must(t, m.Close())
	}
}

func TestCrossedCacheMountsDoNotDeadlock(t *testing.T) {
	s := tempStore(t)
	a, b := CacheMountRequest{ID: "a", Sharing: SharingLocked}, CacheMountRequest{ID: "b", Sharing: SharingLocked}
	var wg sync.WaitGroup
	for _, reqs := range [][]CacheMountRequest{{a, b}, {b, a}} {
		wg.Go(func() {
			for range 50 {
				mounts, err := s.CacheMounts(t.Context(), reqs, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for _, m := range mounts {
					if err := m.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestUnknownSharingIsRefused(t *testing.T) {
	s := tempStore(t)
	_, err := s.CacheMounts(t.Context(), []CacheMountRequest{{ID: "x", Sharing: "mine"}}, nil)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

const testCID = "0123456789abcdef"

func TestContainerIsLockedByItsOwner(t *testing.T) {
	s := tempStore(t)
	c, err := s.NewContainer(t.Context(), testCID)
	must(t, err)
	if _, err := s.NewContainer(t.Context(), testCID); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second one: %v", err)
	}
	other, err := s.OpenContainer(testCID)
	must(t, err)
	defer other.Close()
	if ok, err := other.TryLock(); ok || err != nil {
		t.Errorf("lock of a running container: %v, %v", ok, err)
	}
	if err := other.Remove(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removal of a running container: %v", err)
	}
	must(t, c.Close())
	if ok, err := other.TryLock(); !ok || err != nil {
		t.Errorf("lock of a dead one's: %v, %v", ok, err)
	}
	must(t, other.Remove())
	if ids, err := s.Containers(); len(ids) > 0 || err != nil {
		t.Errorf("still there: %v, %v", ids, err)
	}
	_, err = s.OpenContainer(testCID)
	mustBeGone(t, err)
}

func TestContainerNamesAreUnique(t *testing.T) {
	s := tempStore(t)
	for _, cid := range []string{testCID, "0123ffff00000000"} {
		c, err := s.NewContainer(t.Context(), cid)
		must(t, err)
		defer c.Close()
	}
	must(t, s.NameContainer(t.Context(), "db", testCID))
	must(t, s.NameContainer(t.Context(), "db", testCID))
	if err := s.NameContainer(t.Context(), "db", "0123ffff00000000"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	if err := s.NameContainer(t.Context(), "../db", testCID); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"db", testCID, "01234"} {
		if cid, err := s.ContainerByName(name); cid != testCID || err != nil {
			t.Errorf("%s: got %s, %v", name, cid, err)
		}
	}
	if _, err := s.ContainerByName("0123"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ambiguous: %v", err)
	}
	_, err := s.ContainerByName("nothing")
	mustBeGone(t, err)

	// The name of a container that is gone is free.
	must(t, os.RemoveAll(filepath.Join(s.containerPath(testCID))))
	must(t, s.NameContainer(t.Context(), "db", "0123ffff00000000"))
	if names, err := s.ContainerNames(); names["0123ffff00000000"] != "db" || err != nil {
		t.Errorf("names: %v, %v", names, err)
	}
	must(t, s.UnnameContainer("db"))
	_, err = s.ContainerByName("db")
	mustBeGone(t, err)
}

func TestVolumeInUseIsNotRemoved(t *testing.T) {
	s := tempStore(t)
	if _, _, _, err := s.Volume(t.Context(), "data", false); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	dir, hold, fresh, err := s.Volume(t.Context(), "data", true)
	must(t, err)
	if !fresh {
		t.Error("not fresh")
	}
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	if err := s.RemoveVolume("data"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
	must(t, hold.Close())
	_, hold, fresh, err = s.Volume(t.Context(), "data", true)
	must(t, err)
	must(t, hold.Close())
	if names, err := s.Volumes(); fresh || len(names) != 1 || err != nil {
		t.Errorf("fresh %v, names %v, %v", fresh, names, err)
	}
	must(t, s.RemoveVolume("data"))
	mustBeGone(t, s.RemoveVolume("data"))
}

// Whoever lists cache mounts tries their locks; that must not cost a job its
// warm tree.
func TestListingCacheMountsDoesNotTakeThemAway(t *testing.T) {
	s := tempStore(t)
	req := []CacheMountRequest{{ID: "x", Sharing: SharingPrivate}}
	first, err := s.CacheMounts(t.Context(), req, nil)
	must(t, err)
	must(t, first[0].Close())
	lister := openStore(t, s.Root(), t.TempDir())
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := lister.cacheMounts(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2000 {
		again, err := s.CacheMounts(t.Context(), req, nil)
		must(t, err)
		if again[0].Dir() != first[0].Dir() {
			t.Error("got a cold tree")
		}
		must(t, again[0].Close())
	}
	close(done)
	wg.Wait()
}
