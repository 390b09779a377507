package dockerapi

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"

	"den/internal/engine"
)

func (s *Server) eventRoutes() []route {
	return []route{{"GET", "/events", s.events, 0}}
}

// eventFilters are those of GET /events.
var eventFilters = [...]string{
	"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
	"scope", "secret", "service", "type", "volume",
}

// An eventText is events.Message with what versions before 1.52 had.
type eventText struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func eventOf(e *engine.Event, v version) *eventText {
	out := &eventText{Message: events.Message{
		Type: events.Type(e.Type), Action: events.Action(e.Action), Scope: "local",
		Actor: events.Actor{ID: e.ID, Attributes: e.Attributes},
		Time:  e.Time.Unix(), TimeNano: e.Time.UnixNano(),
	}}
	if out.Actor.Attributes == nil {
		out.Actor.Attributes = map[string]string{}
	}
	if v < 52 && (out.Type == events.ContainerEventType || out.Type == events.ImageEventType) {
		out.Status, out.ID = e.Action, e.ID
		if out.Type == events.ContainerEventType {
			out.From = e.Attributes["image"]
		}
	}
	return out
}

func (s *Server) events(w http.ResponseWriter, c *call) error {
	f, err := c.filters(eventFilters[:]...)
	if err != nil {
		return err
	}
	now := time.Now()
	since, err := timestamp(c.query.Get("since"), now)
	if err != nil {
		return err
	}
	until, err := timestamp(c.query.Get("until"), now)
	if err != nil {
		return err
	}
	if !until.IsZero() && !since.IsZero() && until.Before(since) {
		return invalid("`since` time (%s) cannot be after `until` time (%s)", c.query.Get("since"), c.query.Get("until"))
	}
	list, err := s.Engine.Events(c.Context(), since, until)
	if err != nil {
		return err
	}
	media := c.eventMedia()
	out, err := c.flushed(w, media)
	if err != nil {
		return err
	}
	for {
		select {
		case <-c.Context().Done():
			return nil
		case e, ok := <-list:
			if !ok {
				return nil
			}
			if !eventMatches(f, &e) {
				continue
			}
			if err := writeEvent(out, media, eventOf(&e, c.version)); err != nil {
				return nil // the client is gone
			}
		}
	}
}

func writeEvent(w io.Writer, media string, e *eventText) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if media == types.MediaTypeJSONSequence {
		data = append([]byte{0x1e}, data...) // RFC 7464
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// eventMedia chooses how events are written. A client that asks for nothing gets what its version calls it.
func (c *call) eventMedia() string {
	for _, field := range c.Header.Values("Accept") {
		for media := range strings.SplitSeq(field, ",") {
			media, _, _ = strings.Cut(media, ";")
			switch media = strings.TrimSpace(media); media {
			case types.MediaTypeJSONLines, types.MediaTypeNDJSON, types.MediaTypeJSONSequence:
				return media
			}
		}
	}
	if c.version < 52 {
		return types.MediaTypeJSON
	}
	return types.MediaTypeJSONLines
}

// eventMatches applies docker's filters of events.
func eventMatches(f filters, e *engine.Event) bool {
	return matchesAction(f, e.Action) && f.exact("type", e.Type) && f.exact("scope", "local") &&
		f.labels("label", e.Attributes) && matchesActor(f, e) && matchesEventImage(f, e)
}

// matchesAction takes an action by the part before its colon, too: "exec_create: sh".
func matchesAction(f filters, action string) bool {
	before, _, _ := strings.Cut(action, ":")
	return f.exact("event", action) || slices.Contains(f["event"], before)
}

// matchesActor applies the filters that name an object of one type.
func matchesActor(f filters, e *engine.Event) bool {
	kinds := [...]string{"config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"}
	asked := false
	for _, kind := range kinds {
		if !f.has(kind) {
			continue
		}
		asked = true
		if e.Type == kind && (f.fuzzy(kind, e.ID) || f.exact(kind, e.Attributes["name"])) {
			return true
		}
		// A network's events name the container, too.
		if kind == "container" && e.Type == "network" && f.fuzzy(kind, e.Attributes["container"]) {
			return true
		}
	}
	return !asked
}

// matchesEventImage takes images with their tag and without.
func matchesEventImage(f filters, e *engine.Event) bool {
	if !f.has("image") {
		return true
	}
	names := []string{e.ID, e.Attributes["name"]}
	if e.Type != "image" {
		names = []string{e.Attributes["image"]}
	}
	return slices.ContainsFunc(names, func(n string) bool {
		if n == "" {
			return false
		}
		bare := n
		if i := strings.LastIndexByte(n, ':'); i > strings.LastIndexByte(n, '/') {
			bare = n[:i]
		}
		return f.exact("image", n) || f.exact("image", bare)
	})
}
