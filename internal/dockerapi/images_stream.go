package dockerapi

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"

	"den/internal/progress"
)

// A progressLine is one line of docker's progress. Error is there for clients that know no
// errorDetail.
type progressLine struct {
	Stream      string          `json:"stream,omitempty"`
	Status      string          `json:"status,omitempty"`
	Progress    *progressDetail `json:"progressDetail,omitempty"`
	ID          string          `json:"id,omitempty"`
	ErrorDetail *errorDetail    `json:"errorDetail,omitempty"`
	Error       string          `json:"error,omitempty"`
	Aux         any             `json:"aux,omitempty"`
}

type progressDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

type errorDetail struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// lines answers with progress. The answer begins with the first, so that an error before it has a
// status of its own. It is safe for concurrent use.
type lines struct {
	c  *call
	w  http.ResponseWriter
	mu sync.Mutex

	begun   bool
	encoder *json.Encoder
	err     error
	// seen are the IDs and phases that were sent last: clients draw one line for each ID.
	seen map[string]string
	// quiet sends no progress.
	quiet bool
}

func (c *call) lines(w http.ResponseWriter) *lines {
	return &lines{c: c, w: w, seen: map[string]string{}}
}

// send sends a message; what cannot be sent is dropped, as the client is gone.
func (l *lines) send(m progressLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(m)
}

func (l *lines) write(m progressLine) {
	if !l.begun {
		var to io.Writer
		to, l.err = l.c.flushed(l.w, "application/json")
		l.begun, l.encoder = true, jsonLines(to)
	}
	if l.err == nil {
		l.err = l.encoder.Encode(m)
	}
}

// status sends one without progress.
func (l *lines) status(id, text string) { l.send(progressLine{ID: id, Status: text}) }

// Event sends the statuses of transfers as docker pull and push show them.
func (l *lines) Event(e progress.Event) {
	if e.Status == nil || l.quiet {
		return
	}
	s := e.Status
	l.mu.Lock()
	defer l.mu.Unlock()
	m := progressLine{ID: s.ID, Status: s.Name, Progress: &progressDetail{}}
	moving := s.Completed == nil && s.Total > 0
	if moving {
		*m.Progress = progressDetail{Current: s.Current, Total: s.Total}
	} else if l.seen[s.ID] == s.Name {
		return
	}
	l.seen[s.ID] = s.Name
	l.write(m)
}

// fail ends the answer with an error: as a line, once it has begun.
func (l *lines) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || !l.begun {
		return err
	}
	text := progress.Plain(err.Error())
	l.write(progressLine{ErrorDetail: &errorDetail{Message: text}, Error: text})
	return nil
}
