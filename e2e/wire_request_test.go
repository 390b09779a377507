package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A wireRequest is one request of a transcript.
type wireRequest struct {
	show string // "", "keys", "body" or "upgrade"
	*http.Request
	typed string
}

// parseRequest reads "[keys|body|upgrade ]METHOD TARGET[ MEDIA-TYPE|NAME:VALUE]...", and the body. id replaces {id},
// the time {now}.
func parseRequest(t *testing.T, request, id string) *wireRequest {
	t.Helper()
	now := time.Now()
	request = strings.NewReplacer("{id}", id, "{now}", fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())).Replace(request)
	line, body, _ := strings.Cut(request, "\n")
	words := strings.Fields(line)
	w := &wireRequest{}
	switch words[0] {
	case "keys", "body", "upgrade":
		w.show, words = words[0], words[1:]
	}
	if len(words) < 2 {
		t.Fatalf("%s: no request", request)
	}
	if w.show == "upgrade" {
		body, w.typed, _ = strings.Cut(body, "\n")
	}
	media := "application/json"
	if list, ok := strings.CutPrefix(body, "tar\n"); ok {
		media, body = "application/x-tar", tarOf(t, list)
	}
	r, err := http.NewRequestWithContext(t.Context(), words[0], "http://d"+words[1], strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", media)
	}
	for _, word := range words[2:] {
		if name, value, ok := strings.Cut(word, ":"); ok {
			r.Header.Set(name, value)
		} else {
			r.Header.Set("Content-Type", word)
		}
	}
	if w.show == "upgrade" {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "tcp")
	}
	w.Request = r
	return w
}

// tarOf is an archive of the files of a list: a name in each line, and after a space the text, with \n for its lines.
func tarOf(t *testing.T, list string) string {
	t.Helper()
	f := files{}
	for line := range strings.Lines(list) {
		name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		f[name] = strings.ReplaceAll(text, `\n`, "\n")
	}
	return string(tarBytes(t, f))
}

// wire sends a request and shows the answer; last is the Id in the answer before, and in this one.
func (e *engine) wire(t *testing.T, request string, last *string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), typed)
	defer cancel()
	w := parseRequest(t, request, *last)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", strings.TrimPrefix(e.host, "unix://"))
	}}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(w.WithContext(ctx))
	if err != nil {
		return fmt.Sprintln(err)
	}
	defer resp.Body.Close()
	stuck := time.AfterFunc(20*time.Second, cancel) // a stream
	defer stuck.Stop()
	if conn, ok := resp.Body.(io.Writer); ok && w.typed != "" {
		if _, err := io.WriteString(conn, w.typed+"\n"); err != nil {
			return fmt.Sprintln(err)
		}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	if err != nil {
		data = fmt.Append(data, "\nand then: ", err)
	}
	var made struct{ ID string }
	if json.Unmarshal(data, &made) == nil && made.ID != "" {
		*last = made.ID
	}
	return showAnswer(resp, data, w.show)
}
