package display

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"den/internal/progress"
)

func status(s progress.Sink, id, name string, current, total int64, done bool) {
	now := time.Now()
	st := &progress.Status{ID: id, Name: name, Current: current, Total: total, Timestamp: now, Started: &now}
	if done {
		st.Completed = &now
	}
	s.Event(progress.Event{Status: st})
}

// pull reports the pull of two layers, one of which is here.
func pull(s progress.Sink) {
	status(s, "aaaa", "Downloading", 0, 2_000_000, false)
	status(s, "bbbb", "Already exists", 0, 0, true)
	for i := range int64(4) {
		status(s, "aaaa", "Downloading", i*500_000, 2_000_000, false)
	}
	status(s, "aaaa", "Extracting", 0, 3_000_000, false)
	status(s, "aaaa", "Extracting", 3_000_000, 3_000_000, false)
	status(s, "aaaa", "Pull complete", 3_000_000, 3_000_000, true)
}

func TestTransferInALogIsALineForEachPhase(t *testing.T) {
	f, read := file(t)
	show := NewTransfer(f, false)
	show.Event(progress.Event{}) // nothing to show
	pull(show)
	if err := show.Close(); err != nil {
		t.Fatal(err)
	}
	status(show, "late", "Downloading", 0, 1, false)
	want := "aaaa: Downloading 2MB\nbbbb: Already exists\naaaa: Extracting 3MB\naaaa: Pull complete 3MB\n"
	if d := cmp.Diff(want, read()); d != "" {
		t.Error(d)
	}
}

func TestTransferOnATerminalHasABarForEachLayer(t *testing.T) {
	tty, end := terminal(t)
	show := NewTransfer(tty, false)
	pull(show)
	if err := show.Close(); err != nil {
		t.Fatal(err)
	}
	got := end()
	for _, want := range []string{"aaaa: Pull complete", "bbbb: Already exists"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
}

func TestBarOfOnePhaseDoesNotEndTheTransfer(t *testing.T) {
	tty, end := terminal(t)
	show := NewTransfer(tty, false)
	status(show, "aaaa", "Downloading", 2_000_000, 2_000_000, false)
	status(show, "aaaa", "Extracting", 1_000_000, 3_000_000, false)
	if err := show.Close(); err != nil {
		t.Fatal(err)
	}
	if got := end(); !strings.Contains(got, "aaaa: Extracting") || !strings.Contains(got, "1MB/3MB") {
		t.Errorf("terminal shows %q", got)
	}
}

func TestUnfinishedTransferDoesNotKeepTheDisplay(t *testing.T) {
	tty, end := terminal(t)
	show := NewTransfer(tty, false)
	status(show, "aaaa", "Downloading", 1, 2_000_000, false)
	for range 2 {
		if err := show.Close(); err != nil {
			t.Fatal(err)
		}
	}
	status(show, "late", "Downloading", 1, 2, false)
	if got := end(); !strings.Contains(got, "aaaa: Downloading") || strings.Contains(got, "late") {
		t.Errorf("terminal shows %q", got)
	}
}

func TestQuietTransferShowsNothing(t *testing.T) {
	f, read := file(t)
	show := NewTransfer(f, true)
	pull(show)
	if err := show.Close(); err != nil || read() != "" {
		t.Errorf("it shows %q, %v", read(), err)
	}
}
