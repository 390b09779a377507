package engine

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"
)

// keptEvents is how many events are there for who asks for what was before. A listener that
// is further behind loses the oldest.
const keptEvents = 4096

// events are the last ones that happened, in a ring.
type events struct {
	mu      sync.Mutex
	ring    []Event
	next    int           // number of the next event, from 0 on
	changed chan struct{} // closed at the next event; nil while nobody waits
	dir     string        // where they are kept; empty for those of a moment
	failed  bool          // the last one could not be written down
	reading sync.Mutex    // held by who reads what other dens have written
}

// Emit tells who listens to Events that something happened; a zero Time is now.
func (e *Engine) Emit(ev Event) {
	if err := e.events.add(ev); err != nil {
		e.Log(fmt.Errorf("events are not kept for the next den: %w", err))
	}
}

// add returns the first of several errors of writing.
func (s *events) add(ev Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	s.push(ev)
	err := s.write(ev)
	again := s.failed
	if s.failed = err != nil; again {
		return nil
	}
	return err
}

// push puts an event into the ring. The caller holds mu.
func (s *events) push(ev Event) {
	if len(s.ring) < keptEvents {
		s.ring = append(s.ring, ev)
	} else {
		s.ring[s.next%keptEvents] = ev
	}
	s.next++
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// after returns the event number n or the first later one that is still there, and its
// number; false if there is none yet.
func (s *events) after(n int) (ev Event, number int, ok bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = max(n, s.next-len(s.ring))
	if n < s.next {
		return s.ring[n%keptEvents], n, true, nil
	}
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return Event{}, n, false, s.changed
}

// Events are those since a moment, and those to come until another or until ctx ends, when
// the channel is closed. A zero since begins now, a zero until never ends.
func (e *Engine) Events(ctx context.Context, since, until time.Time) (<-chan Event, error) {
	if !until.IsZero() && until.Before(since) {
		return nil, invalid("`since` time (%d) cannot be after `until` time (%d)", since.Unix(), until.Unix())
	}
	s := &e.events
	s.mu.Lock()
	n := s.next
	if !since.IsZero() {
		n = 0
	}
	s.mu.Unlock()
	out := make(chan Event)
	var stop context.CancelFunc
	if until.IsZero() {
		ctx, stop = context.WithCancel(ctx)
	} else {
		ctx, stop = context.WithDeadline(ctx, until)
	}
	go func() {
		defer close(out)
		defer stop()
		for {
			ev, number, ok, changed := s.after(n)
			if !ok {
				select {
				case <-changed:
					continue
				case <-ctx.Done():
					return
				}
			}
			n = number + 1
			if ev.Time.Before(since) {
				continue
			}
			if !until.IsZero() && ev.Time.After(until) {
				return
			}
			if !deliver(ctx, out, ev) {
				return
			}
		}
	}()
	return out, nil
}

// deliver gives an event to who listens. What has happened before the end is given even if
// the end has come.
func deliver(ctx context.Context, out chan<- Event, ev Event) bool {
	select {
	case out <- ev:
		return true
	case <-ctx.Done():
	}
	if context.Cause(ctx) != context.DeadlineExceeded {
		return false
	}
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	select {
	case out <- ev:
		return true
	case <-patience.C:
		return false
	}
}

// containerEvent emits an event of a container, with docker's attributes.
func (e *Engine) containerEvent(r *record, action string, more map[string]string) {
	e.Emit(eventOf(r, action, more))
}

func eventOf(r *record, action string, more map[string]string) Event {
	attrs := map[string]string{}
	maps.Copy(attrs, r.Labels)
	attrs["name"], attrs["image"] = r.Name, r.Image
	maps.Copy(attrs, more)
	return Event{Type: "container", Action: action, ID: r.ID, Attributes: attrs}
}

func (e *Engine) volumeEvent(name, action string, more map[string]string) {
	attrs := map[string]string{"driver": "local"}
	maps.Copy(attrs, more)
	e.Emit(Event{Type: "volume", Action: action, ID: name, Attributes: attrs})
}

func (e *Engine) networkEvent(id, name, action, container string) {
	attrs := map[string]string{"name": name, "type": "bridge"}
	if container != "" {
		attrs["container"] = container
	}
	e.Emit(Event{Type: "network", Action: action, ID: id, Attributes: attrs})
}
