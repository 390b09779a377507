package store

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A pedal is a brake that a test looks at.
type pedal struct{ frozen, thawed chan struct{} }

func newPedal() pedal { return pedal{make(chan struct{}, 99), make(chan struct{}, 99)} }

func (p pedal) Freeze() { p.frozen <- struct{}{} }
func (p pedal) Thaw()   { p.thawed <- struct{}{} }

// watchedDraft is a draft of a store with a cap of 64 MiB, 56 of which are cache, and its
// watch, whose room is 4 MiB. Nobody can make room until the function is called.
func watchedDraft(t *testing.T) (dir string, w *Watch, p pedal, unlock func()) {
	t.Helper()
	s := cappedStore(t, "", 64*mebi)
	s.patience = time.Minute
	cachedBlob(t, s, "old", 56*mebi, time.Hour, 0)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	w, err = s.Watch(t.Context(), d.FS())
	must(t, err)
	p = newPedal()
	w.SetBrake(p)
	unlock, err = s.lockGC(t.Context())
	must(t, err)
	return d.FS(), w, p, unlock
}

func TestFastProgramIsHeldWhileRoomIsMade(t *testing.T) {
	for what, size := range map[string]int{"nearly all": 7 * mebi / 2, "more than there is": 9 * mebi} {
		t.Run(what, func(t *testing.T) {
			dir, w, brake, unlock := watchedDraft(t)
			f, err := os.Create(filepath.Join(dir, "big"))
			must(t, err)
			defer f.Close()
			_, err = f.Write(make([]byte, size))
			must(t, err)
			// Who frees space of this disk beside the test hides some of that: it goes on.
			for held := false; !held; {
				select {
				case <-brake.frozen:
					held = true
				case <-w.Context().Done():
					t.Fatal(context.Cause(w.Context()))
				case <-time.After(time.Second):
					_, err = f.Write(make([]byte, mebi/2))
					must(t, err)
				}
			}
			unlock()
			select {
			case <-brake.thawed:
			case <-w.Context().Done():
			}
			if err := context.Cause(w.Context()); err != nil {
				t.Errorf("the program was stopped: %v", err)
			}
			must(t, w.Stop())
		})
	}
}

// Whoever counts and reserves waits for the disk, which may take seconds while a program
// keeps it busy.
func TestFastProgramIsHeldWhileTheWatchWaitsForTheDisk(t *testing.T) {
	dir, w, brake, unlock := watchedDraft(t)
	unlock()
	w.mu.Lock()
	f, err := os.Create(filepath.Join(dir, "big"))
	must(t, err)
	defer f.Close()
	for held := false; !held; { // who frees space of this disk hides some of it
		_, err = f.Write(make([]byte, 3*mebi))
		must(t, err)
		select {
		case <-brake.frozen:
			held = true
		case <-time.After(time.Second):
		}
	}
	w.mu.Unlock()
	<-brake.thawed
	must(t, w.Stop())
}

// The watch's own moments are the test's here.
func TestProgramIsLetGoAfterAWhileUnlessNothingIsLeft(t *testing.T) {
	s := cappedStore(t, "", 64*mebi)
	for _, c := range []struct {
		what  string
		eaten int64 // of four mebibytes
		held  time.Duration
		holds bool
	}{
		{"a quarter is eaten", mebi, 0, false},
		{"more than half is", 5 * mebi / 2, 0, true},
		{"and it was held for long", 5 * mebi / 2, 2 * maxHeld, false},
		{"nearly all is", 15 * mebi / 4, 2 * maxHeld, true},
		{"all and more", 9 * mebi, 2 * maxHeld, true},
	} {
		r, err := s.Reserve(t.Context(), 4*mebi)
		must(t, err)
		w := &Watch{store: s, ahead: r, growing: true, grown: c.eaten, brake: brake{pedal: newPedal()}}
		if c.held > 0 {
			w.brake.held = time.Now().Add(-c.held)
		}
		w.press()
		if holds := !w.brake.held.IsZero(); holds != c.holds {
			t.Errorf("%s: held is %t", c.what, holds)
		}
		if w.press(); w.brake.held.IsZero() == c.holds {
			t.Errorf("%s: it is not for long", c.what)
		}
		must(t, r.Close())
	}
}

func TestWatchLooksOftenNearTheCap(t *testing.T) {
	for cap, want := range map[int64]time.Duration{
		256 * mebi:  watchFast, // room is 16 MiB
		1024 * mebi: time.Second / (10 * 64),
		8 << 30:     watchEvery,
	} {
		s := cappedStore(t, "", cap)
		d, err := s.NewDraft(t.Context())
		must(t, err)
		w, err := s.Watch(t.Context(), d.FS())
		must(t, err)
		w.mu.Lock()
		next, err := w.tick(watchEvery)
		w.mu.Unlock()
		must(t, err)
		// Somebody else may write to this disk.
		if next > want || next < want/2 && cap < 8<<30 {
			t.Errorf("cap %d: the next look is after %v, want %v", cap, next, want)
		}
		must(t, w.Stop())
		must(t, d.Close())
	}
}

func TestHeldProgramIsStoppedWhenThereIsNoRoom(t *testing.T) {
	s := cappedStore(t, "", 64*mebi)
	b, err := bigBlob(t.Context(), s, "pinned", 56*mebi)
	must(t, err)
	defer b.Close()
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	w, err := s.Watch(t.Context(), d.FS())
	must(t, err)
	w.SetBrake(newPedal())
	must(t, os.WriteFile(filepath.Join(d.FS(), "big"), make([]byte, 12*mebi), 0o644))
	<-w.Context().Done()
	if err := context.Cause(w.Context()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("cause: %v", err)
	}
	if err := w.Stop(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("stop: %v", err)
	}
}
