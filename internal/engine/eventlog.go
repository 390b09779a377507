package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Events are kept in two files of the engine's directory, so that who asks for those since a
// moment gets them from a den that was killed and started again, too. Each event is a line of JSON,
// with an empty one before it: what a write left torn spoils nothing but itself. The files are
// appended to without a sync; what the machine loses when it dies are events, nothing else.
const (
	eventsFile    = "events"
	oldEventsFile = "events.old"
	// maxEventsBytes is the size at which the file takes the place of the old one.
	maxEventsBytes = 2 << 20
	// maxEventBytes bounds one event: attributes are a container's labels, which have no bound.
	maxEventBytes = 64 << 10
)

// keptEvent is an Event on disk. Fields are only added.
type keptEvent struct {
	Type       string            `json:"type"`
	Action     string            `json:"action"`
	ID         string            `json:"id,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Time       time.Time         `json:"time"`
	Departed   *int              `json:"departed,omitempty"`
}

// keep begins to write events down, after those of the dens before were read.
func (s *events) keep(ctx context.Context, dirOf func(context.Context) (string, error)) error {
	dir, err := dirOf(ctx)
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	var kept []Event
	now := time.Now()
	for _, name := range []string{oldEventsFile, eventsFile} {
		data, rerr := readEvents(filepath.Join(dir, name))
		kept = append(kept, parseEvents(data, now)...)
		err = errors.Join(err, rerr)
	}
	slices.SortStableFunc(kept, func(x, y Event) int { return x.Time.Compare(y.Time) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir = dir
	for _, ev := range kept {
		s.push(ev)
	}
	return err
}

// readEvents reads one of the files, as far as den can have written it.
func readEvents(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("events: %s is not a file; remove it: %w", name, err)
	}
	return io.ReadAll(io.LimitReader(f, maxEventsBytes+maxEventBytes+2))
}

// parseEvents takes the lines that are events that have happened, and leaves the others.
func parseEvents(data []byte, now time.Time) []Event {
	var all []Event
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || len(line) > maxEventBytes {
			continue
		}
		var k keptEvent
		if json.Unmarshal(line, &k) != nil || k.Type == "" || k.Action == "" || k.Time.Unix() <= 0 || k.Time.After(now) {
			continue
		}
		all = append(all, Event(k))
	}
	return all
}

// write appends an event to the file. The caller holds mu.
func (s *events) write(ev Event) error {
	if s.dir == "" {
		return nil
	}
	line, err := json.Marshal(keptEvent(ev))
	if err == nil && len(line) > maxEventBytes {
		// The labels are the container's, and can be asked for there.
		ev.Attributes = map[string]string{"name": ev.Attributes["name"], "image": ev.Attributes["image"]}
		line, err = json.Marshal(keptEvent(ev))
	}
	if err != nil || len(line) > maxEventBytes {
		return err
	}
	name := filepath.Join(s.dir, eventsFile)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Concat([]byte("\n"), line, []byte("\n")))
	info, serr := f.Stat()
	err = errors.Join(err, serr, f.Close())
	if err == nil && info.Size() >= maxEventsBytes {
		err = os.Rename(name, filepath.Join(s.dir, oldEventsFile))
	}
	return err
}
