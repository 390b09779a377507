// Package display shows progress events to a person or to a log.
//
// Builds are shown by BuildKit's progressui, in the modes that docker's
// --progress flag names (quiet and none are den's own, and show what failed); transfers (pull, push) by bars on a terminal and by
// lines elsewhere. A display owns one goroutine, which Close waits for, and
// never holds up the work that reports to it for longer than a write takes.
package display

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/progress/progressui"

	"den/internal/progress"
)

// Modes of --progress, in the order that help lists them.
var Modes = [...]string{"auto", "none", "plain", "quiet", "rawjson", "tty"}

// flushEvery is how often collected events are handed to the display: often
// enough for the eye, rarely enough that thousands of events cost nothing.
const flushEvery = 20 * time.Millisecond

// Build shows a build. It is a progress.Sink until Close.
type Build struct {
	ch     chan *client.SolveStatus
	done   chan struct{}
	finish chan struct{}
	err    error

	mu      sync.Mutex
	pending *client.SolveStatus
	closed  bool
}

// A Heading is what is said of a build before its first step: a line in a log, some
// words at the end of a terminal's first line. Empty says nothing.
type Heading struct{ Plain, Terminal string }

// NewBuild shows a build on out in the given mode; "" is auto, which is tty on
// a terminal and plain elsewhere. An unknown mode is errdefs.ErrInvalidArgument.
func NewBuild(out *os.File, mode string, h Heading) (*Build, error) {
	d, err := newDisplay(out, mode, h)
	if err != nil {
		return nil, err
	}
	b := &Build{
		ch:      make(chan *client.SolveStatus),
		done:    make(chan struct{}),
		finish:  make(chan struct{}),
		pending: &client.SolveStatus{},
	}
	go b.pump()
	go func() {
		defer close(b.done)
		// The display ends when the channel closes, so that the last state
		// is shown also when the work was cancelled.
		_, b.err = d.UpdateFrom(context.Background(), b.ch)
		for range b.ch { // a display that failed must not block the pump
		}
	}()
	return b, nil
}

// An updater shows what comes through a channel until that is closed.
type updater interface {
	UpdateFrom(context.Context, chan *client.SolveStatus) ([]client.VertexWarning, error)
}

func newDisplay(out *os.File, mode string, h Heading) (updater, error) {
	switch mode {
	case "":
		mode = string(progressui.AutoMode)
	case "none", string(progressui.QuietMode):
		return quiet{out}, nil
	}
	if !slices.Contains(Modes[:], mode) {
		return nil, fmt.Errorf("progress %q: %w, want one of %s", mode, errdefs.ErrInvalidArgument, strings.Join(Modes[:], ", "))
	}
	d, err := progressui.NewDisplay(out, progressui.DisplayMode(mode), progressui.WithDesc(h.Plain, h.Terminal))
	if err != nil {
		return nil, fmt.Errorf("progress %s: %w: %w", mode, errdefs.ErrInvalidArgument, err)
	}
	return d, nil
}

// Event takes one event. After Close it is dropped.
func (b *Build) Event(e progress.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	appendEvent(b.pending, e)
}

// pump hands what was collected to the display at a steady pace.
func (b *Build) pump() {
	defer close(b.ch)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.flush()
		case <-b.finish:
			b.flush()
			return
		}
	}
}

func (b *Build) flush() {
	b.mu.Lock()
	s := b.pending
	b.pending = &client.SolveStatus{}
	b.mu.Unlock()
	if len(s.Vertexes)+len(s.Statuses)+len(s.Logs)+len(s.Warnings) > 0 {
		b.ch <- s
	}
}

// Close shows what is left and returns the display's own error.
func (b *Build) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	close(b.finish)
	<-b.done
	return b.err
}

func appendEvent(s *client.SolveStatus, e progress.Event) {
	switch {
	case e.Vertex != nil:
		s.Vertexes = append(s.Vertexes, vertex(e.Vertex))
	case e.Status != nil:
		v := e.Status
		s.Statuses = append(s.Statuses, &client.VertexStatus{
			ID: v.ID, Vertex: v.Vertex, Name: v.Name, Total: v.Total, Current: v.Current,
			Timestamp: v.Timestamp, Started: v.Started, Completed: v.Completed,
		})
	case e.Log != nil:
		l := e.Log // its writer may use the bytes again
		s.Logs = append(s.Logs, &client.VertexLog{Vertex: l.Vertex, Stream: l.Stream, Data: bytes.Clone(l.Data), Timestamp: l.Timestamp})
	case e.Warning != nil:
		s.Warnings = append(s.Warnings, warning(e.Warning))
	}
}

func vertex(v *progress.Vertex) *client.Vertex {
	out := &client.Vertex{
		Digest: v.Digest, Inputs: v.Inputs, Name: v.Name, Started: v.Started,
		Completed: v.Completed, Cached: v.Cached, Error: v.Error,
	}
	if v.Group != "" {
		out.ProgressGroup = &pb.ProgressGroup{Id: v.Group, Name: v.Name}
	}
	return out
}

func warning(w *progress.Warning) *client.VertexWarning {
	out := &client.VertexWarning{Vertex: w.Vertex, Level: w.Level, Short: w.Short, Detail: w.Detail, URL: w.URL}
	if w.Filename != "" {
		out.SourceInfo = &pb.SourceInfo{Filename: w.Filename, Data: w.Source}
		out.Range = []*pb.Range{{Start: &pb.Position{Line: int32(w.From)}, End: &pb.Position{Line: int32(w.To)}}}
	}
	return out
}
