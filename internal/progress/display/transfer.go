package display

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"den/internal/progress"
)

// Transfer shows pulls and pushes: one bar for each layer, with rate and time
// left, on a terminal; a line when a layer begins and when it is done elsewhere.
type Transfer struct {
	mu   sync.Mutex
	out  io.Writer
	bars *mpb.Progress // nil in a log
	seen map[string]*transferItem
	// closed also says that nothing was to be shown.
	closed bool
}

type transferItem struct {
	bar  *mpb.Bar
	name atomic.Pointer[string] // read by the bar's own goroutine
	at   time.Time
	last int64
	done bool
}

// NewTransfer shows transfers on out. quiet shows nothing.
func NewTransfer(out *os.File, quiet bool) *Transfer {
	t := &Transfer{out: out, seen: map[string]*transferItem{}, closed: quiet}
	if !quiet && term.IsTerminal(int(out.Fd())) {
		t.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return t
}

// Event takes one event; all but statuses are ignored.
func (t *Transfer) Event(e progress.Event) {
	if e.Status == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if t.bars != nil {
		t.bar(e.Status)
	} else {
		t.line(e.Status)
	}
}

func (t *Transfer) line(s *progress.Status) {
	it := t.seen[s.ID]
	if it == nil {
		it = &transferItem{}
		t.seen[s.ID] = it
	}
	if s.Name != "" && s.Name != it.label() && !it.done {
		it.name.Store(&s.Name)
		size := ""
		if s.Total > 0 {
			size = " " + units.HumanSize(float64(s.Total))
		}
		fmt.Fprintf(t.out, "%s: %s%s\n", s.ID, s.Name, size)
	}
	if s.Completed != nil {
		it.done = true
	}
}

func (t *Transfer) bar(s *progress.Status) {
	it := t.seen[s.ID]
	now := time.Now()
	if it == nil {
		it = &transferItem{at: now}
		t.seen[s.ID] = it
		it.bar = t.newBar(s.ID, it)
	}
	it.name.Store(&s.Name)
	if s.Total > 0 {
		it.bar.SetTotal(s.Total, false)
	}
	if s.Current < it.last { // the next phase counts from the beginning
		it.last = 0
	}
	if s.Current > it.last {
		it.bar.EwmaSetCurrent(s.Current, now.Sub(it.at))
		it.at, it.last = now, s.Current
	}
	if s.Completed != nil && !it.done {
		it.done = true
		it.bar.SetTotal(-1, true)
	}
}

// newBar is a bar that becomes a line without one when it is complete, as
// docker's do. It begins without a total, or it would be complete at the end of
// its first phase.
func (t *Transfer) newBar(id string, it *transferItem) *mpb.Bar {
	counters := func(s decor.Statistics) string {
		if s.Total <= 0 {
			return ""
		}
		return fmt.Sprintf("%s/%s", units.HumanSize(float64(s.Current)), units.HumanSize(float64(s.Total)))
	}
	return t.bars.New(0, mpb.BarStyle(), mpb.BarFillerClearOnComplete(),
		mpb.PrependDecorators(
			decor.Name(id+": "),
			decor.Any(func(decor.Statistics) string { return it.label() }, decor.WCSyncSpaceR),
		),
		mpb.AppendDecorators(
			decor.OnComplete(decor.Any(counters, decor.WCSyncSpace), ""),
			decor.OnComplete(decor.EwmaSpeed(decor.SizeB1000(0), " % .1f", 30, decor.WCSyncSpace), ""),
			decor.OnComplete(decor.EwmaETA(decor.ET_STYLE_GO, 30, decor.WCSyncSpace), ""),
		))
}

func (it *transferItem) label() string {
	if name := it.name.Load(); name != nil {
		return *name
	}
	return ""
}

// Close ends the display; bars of unfinished transfers stay as they are. What
// comes later is dropped.
func (t *Transfer) Close() error {
	t.mu.Lock()
	if t.closed || t.bars == nil {
		t.closed = true
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	for _, it := range t.seen {
		if !it.done {
			it.bar.Abort(false)
		}
	}
	t.mu.Unlock()
	t.bars.Wait()
	return nil
}
