package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// Clients ask how a container ended after they have started it, and one that removes itself
// may be gone by then.
func TestWaitAnswersForWhatHasRemovedItself(t *testing.T) {
	r := newRig(t)
	r.Engine = r.next()
	other := r.next() // of the same engine, and it began before all that
	r.exec.program = func(*fakeSandbox) int { return 7 }
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "brief", Args: []string{"x"}, Remove: true}})
	removed, err := r.Wait(t.Context(), id, WaitRemoved)
	if err != nil {
		t.Fatal(err)
	}
	r.start(id)
	if w := <-removed; w.Err != nil || w.Code != 7 {
		t.Fatalf("%+v", w)
	}
	for which, e := range map[string]*Engine{"this den": r.Engine, "another": other, "the next": r.next()} {
		for _, name := range []string{id, id[:12], "brief", "/brief"} {
			for _, c := range []WaitCondition{WaitNotRunning, WaitNextExit, WaitRemoved} {
				w, err := e.Wait(t.Context(), name, c)
				if err != nil {
					t.Fatalf("%s, %s, %s: %v", which, name, c, err)
				}
				if w := <-w; w.Err != nil || w.Code != 7 {
					t.Errorf("%s, %s, %s: %+v", which, name, c, w)
				}
			}
		}
		if _, err := e.Container(t.Context(), id); !errdefs.IsNotFound(err) {
			t.Errorf("%s: it is there: %v", which, err)
		}
	}
}

// What a person has removed is not there, for Wait either.
func TestWaitDoesNotAnswerForWhatAPersonHasRemoved(t *testing.T) {
	r := newRig(t)
	r.Engine = r.next()
	r.exec.program = func(*fakeSandbox) int { return 7 }
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "brief", Args: []string{"x"}}})
	r.start(id)
	r.ended(id)
	if err := r.Remove(t.Context(), id, RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{id, "brief", "never"} {
		if _, err := r.Wait(t.Context(), name, WaitNotRunning); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := r.Wait(t.Context(), "", WaitNotRunning); !errdefs.IsInvalidArgument(err) || err.Error() != `invalid name or ID supplied: ""` {
		t.Errorf("no name: %v", err)
	}
}

func TestDeparturesAreFoundAsContainersAre(t *testing.T) {
	now := time.Now()
	a, b := strings.Repeat("a", 64), strings.Repeat("a", 63)+"b"
	code := func(n int) *int { return &n }
	events := []Event{
		{ID: "0ld", Time: now.Add(-time.Hour), Departed: code(1)},
		{ID: a, Attributes: map[string]string{"name": "n"}, Time: now, Departed: code(2)},
		{ID: "c", Attributes: map[string]string{"name": "n"}, Time: now, Departed: code(3)},
		{ID: b, Time: now, Departed: code(4)},
		{ID: "stays", Time: now},
	}
	for asked, want := range map[string]int{a: 2, "n": 3, b: 4, b[:63]: -1, "c": 3, "0ld": -1, "stays": -1, "": -1} {
		d := find(departures(events, now.Add(-time.Minute)), asked)
		if got := d; got == nil && want >= 0 || got != nil && got.code != want {
			t.Errorf("%q: %+v, want %d", asked, got, want)
		}
	}
}

// Between the end of its files and the event it is neither there nor an event.
func TestWaitAnswersForWhatIsRemovingItself(t *testing.T) {
	r := newRig(t)
	r.Engine = r.next()
	r.exec.program = func(*fakeSandbox) int { return 7 }
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "brief", Args: []string{"x"}}})
	r.start(id)
	r.ended(id)
	l := r.known(id)
	l.departing = true
	dir, err := l.locked(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	rec := l.snapshot()
	if err := r.removeDir(dir, &rec); err != nil {
		t.Fatal(err)
	}
	w, err := r.Wait(t.Context(), "brief", WaitNotRunning)
	if err != nil {
		t.Fatal(err)
	}
	if w := <-w; w.Err != nil || w.Code != 7 {
		t.Errorf("%+v", w)
	}
}
