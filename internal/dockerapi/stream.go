package dockerapi

import (
	"encoding/json"
	"io"
	"net/http"
	"time"
)

// A flushed writer sends each write at once, and gives up a client that takes
// nothing for the server's WriteTimeout.
type flushed struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
}

// flushed begins an answer that comes in pieces: its head goes out now.
func (c *call) flushed(w http.ResponseWriter, contentType string) (io.Writer, error) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	f := &flushed{w: w, control: http.NewResponseController(w), timeout: c.server.WriteTimeout}
	return f, f.control.Flush()
}

func (f *flushed) Write(p []byte) (int, error) {
	// A writer without deadlines is a test's.
	_ = f.control.SetWriteDeadline(time.Now().Add(f.timeout))
	n, err := f.w.Write(p)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// jsonLines writes values of a stream, one JSON value and a line's end each, as
// docker's progress and events come.
func jsonLines(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}
