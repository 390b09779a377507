package engine

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"time"
)

// departedFor is how long Wait still tells how a container ended that has removed itself.
// Clients ask after they have started it (dockerode's run does), and a short program's container
// is gone by then; dockerd takes longer to remove it than they take to ask.
const departedFor = 10 * time.Minute

// departed is a container that removes itself, or has.
type departed struct {
	id, name string
	code     int
	life     *life // while it does
}

// removeItself removes a container that was to go when it ended. How it ended is kept with
// the event, so that this den, the next one and another of this engine can tell.
func (l *life) removeItself(ctx context.Context) error {
	l.mu.Lock()
	l.departing = true
	l.mu.Unlock()
	return l.remove(ctx, RemoveOptions{Volumes: true})
}

// waitDeparted is Wait for a container that is not there, as missing says, but may have
// removed itself.
func (e *Engine) waitDeparted(ctx context.Context, nameOrID string, condition WaitCondition, missing error) (<-chan WaitResult, error) {
	asked := trimSlash(nameOrID)
	// In this order: what leaves the lives has its event.
	d := find(e.departing(), asked)
	if d != nil {
		return d.life.wait(ctx, condition), nil
	}
	since := time.Now().Add(-departedFor)
	if d = find(departures(e.events.latest(), since), asked); d == nil {
		d = find(departures(e.events.written(), since), asked)
	}
	if d == nil {
		return nil, missing
	}
	result := make(chan WaitResult, 1)
	result <- WaitResult{Code: d.code}
	return result, nil
}

// find looks, as for containers that are there, for an id, a name or the beginning of one id
// only. Of one name the last is meant.
func find(all []departed, asked string) (found *departed) {
	if asked == "" {
		return nil
	}
	several := false
	for i := len(all) - 1; i >= 0; i-- {
		d := &all[i]
		switch {
		case d.id == asked || d.name == asked:
			return d
		case strings.HasPrefix(d.id, asked):
			several = several || found != nil && found.id != d.id
			found = d
		}
	}
	if several {
		return nil
	}
	return found
}

// departing are the containers whose removal of themselves is under way.
func (e *Engine) departing() (all []departed) {
	e.residents.mu.Lock()
	lives := make([]*life, 0, len(e.residents.lives))
	for _, l := range e.residents.lives {
		lives = append(lives, l)
	}
	e.residents.mu.Unlock()
	for _, l := range lives {
		l.mu.Lock()
		if l.departing {
			all = append(all, departed{id: l.id, name: l.record.Name, life: l})
		}
		l.mu.Unlock()
	}
	return all
}

// departures are those among events since a moment, in their order.
func departures(events []Event, since time.Time) (all []departed) {
	for _, ev := range events {
		if ev.Departed != nil && !ev.Time.Before(since) {
			all = append(all, departed{id: ev.ID, name: ev.Attributes["name"], code: *ev.Departed})
		}
	}
	return all
}

// latest are the events that this process knows, the oldest first.
func (s *events) latest() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Event, 0, len(s.ring))
	for n := s.next - len(s.ring); n < s.next; n++ {
		all = append(all, s.ring[n%keptEvents])
	}
	return all
}

// written are the departures on disk, to which every den of the engine writes. They are read
// by one at a time: anybody may ask for what never was.
func (s *events) written() []Event {
	s.mu.Lock()
	dir := s.dir
	s.mu.Unlock()
	if dir == "" {
		return nil
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	data, err := readEvents(filepath.Join(dir, eventsFile))
	if err != nil {
		return nil // whoever keeps events has complained
	}
	var lines []byte
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, []byte(`"departed":`)) {
			lines = append(lines, line...)
		}
	}
	return parseEvents(lines, time.Now())
}
