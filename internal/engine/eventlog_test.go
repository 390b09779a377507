package engine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// since lists the events of an engine from begin on, as "action name".
func since(t *testing.T, e *Engine, begin time.Time) []string {
	t.Helper()
	events, err := e.Events(t.Context(), begin, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for ev := range events {
		got = append(got, ev.Action+" "+ev.Attributes["name"])
	}
	return got
}

// next is the den that comes after the one of r.
func (r *rig) next() *Engine {
	next := New(r.Options)
	next.Begin(r.t.Context())
	close(next.residents.adopted)
	return next
}

func TestEventsOfTheDenBeforeAreReplayed(t *testing.T) {
	r := newRig(t)
	var complaints []error
	r.Log = func(err error) { complaints = append(complaints, err) }
	r.Engine = r.next()
	begin := time.Now()
	r.create(CreateRequest{RunRequest: RunRequest{Name: "c"}})
	dir, err := r.Store.EventsDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Killed in the middle of a write; and somebody else wrote, too.
	f, err := os.OpenFile(filepath.Join(dir, eventsFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour).Format(time.RFC3339)
	fmt.Fprintf(f, "[]\n{\"type\":7}\n{\"type\":\"image\",\"action\":\"future\",\"time\":%q}\n\x00\xff\n{}\n%s\n{\"type\":\"image\",\"action\":\"to", future, strings.Repeat("x", maxEventBytes+1))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	second := r.next()
	second.Emit(Event{Type: "image", Action: "pull", Attributes: map[string]string{"name": "box"}})
	want := []string{"create c", "pull box"}
	if d := cmp.Diff(want, since(t, second, begin)); d != "" {
		t.Error(d)
	}
	third := r.next()
	if d := cmp.Diff(want, since(t, third, begin)); d != "" {
		t.Error("after the torn line:", d)
	}
	if len(complaints) > 0 {
		t.Error(complaints)
	}
}

func TestEventsOnDiskAreBoundedAndTheLastOnesStay(t *testing.T) {
	r := newRig(t)
	r.Engine = r.next()
	begin := time.Now()
	large := strings.Repeat("l", 60<<10)
	const n = 100
	for i := range n {
		r.Emit(Event{Type: "container", Action: "die", Attributes: map[string]string{"name": fmt.Sprint(i), "label": large}})
	}
	r.Emit(Event{Type: "container", Action: "destroy", Attributes: map[string]string{"name": "huge", "label": large + large}})
	dir, err := r.Store.EventsDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Size() > maxEventsBytes+maxEventBytes+2 {
			t.Error(info.Size(), err)
		}
	}
	got := since(t, r.next(), begin)
	if len(got) < maxEventsBytes/maxEventBytes || got[len(got)-1] != "destroy huge" || got[len(got)-2] != fmt.Sprintf("die %d", n-1) {
		t.Errorf("%d: %q", len(got), got)
	}
}

func TestEventsThatCannotBeKeptAreComplainedAboutOnce(t *testing.T) {
	r := newRig(t)
	dir, err := r.Store.EventsDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Not what den made: nothing may be read from it, or written to it.
	if err := os.Symlink("/dev/zero", filepath.Join(dir, eventsFile)); err != nil {
		t.Fatal(err)
	}
	var complaints []error
	r.Log = func(err error) { complaints = append(complaints, err) }
	r.Engine = r.next()
	begin := time.Now()
	for range 3 {
		r.Emit(Event{Type: "image", Action: "pull", Attributes: map[string]string{"name": "box"}})
	}
	if got := since(t, r.Engine, begin); len(got) != 3 {
		t.Errorf("events are %q", got)
	}
	if len(complaints) != 2 { // one of reading, one of writing
		t.Errorf("complaints are %q", complaints)
	}
}

func FuzzEventsOnDisk(f *testing.F) {
	f.Add([]byte("\n{\"type\":\"image\",\"action\":\"pull\",\"time\":\"2026-01-02T03:04:05Z\",\"attributes\":{\"name\":\"box\"}}\n"))
	f.Add([]byte("{\"type\":\"image\",\"act"))
	f.Add([]byte("\x00\n[]\nnull\n{\"time\":\"9999-12-31T23:59:59Z\"}"))
	now := time.Now()
	f.Fuzz(func(t *testing.T, data []byte) {
		all := parseEvents(data, now)
		if len(all) > bytes.Count(data, []byte("\n"))+1 {
			t.Errorf("%d events", len(all))
		}
		for _, ev := range all {
			if ev.Type == "" || ev.Action == "" || ev.Time.After(now) {
				t.Errorf("%+v", ev)
			}
		}
	})
}
