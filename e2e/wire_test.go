package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The transcripts below testdata/wire are requests as they go over the wire, and what is answered:
// the status, the media type and the body; of an error the message alone. "keys GET ..." shows which
// fields an answer has instead, one line for each object. A second line of a request is its body. What
// dockerd of the distribution answers, which speaks API 1.41 at most, what one of today answers (moby, see newerDockerd),
// and what den does, stands side by side: each difference is under "on dockerd:" or "on moby:".
// DEN_E2E_RECORD=DIRECTORY writes down what each says.

// TestWire asks what no client asks, and what clients of other versions do.
func TestWire(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, e *engine) {
		e.must(t, `docker run -d --name up --label k=v -p 127.0.0.1::80 small sleep 10000 &&
docker create --name made small true
docker volume create vol && docker network create net && docker create --name uses -v vol:/v --network net small true`)
		for _, file := range transcripts(t, "wire") {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { e.playWire(t, file) })
		}
	}
	needRoot(t)
	everyDockerd(t, test)
	t.Run("privileged", func(t *testing.T) { t.Parallel(); test(t, newDen(t).serve("privileged")) })
}

// ofAnyMachine finds the number of processors in what is answered.
var ofAnyMachine = regexp.MustCompile(`((?:from 0\.01 to |there are only |available: 0-))\d+`)

func (e *engine) playWire(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseTranscript(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, x := range all {
		want, other := x.want[e.name]
		if !other {
			want = x.want[""]
		}
		got := ofAnyMachine.ReplaceAllString(settled(e.wire(t, x.command)), "${1}N")
		if record := os.Getenv("DEN_E2E_RECORD"); record != "" { // a directory, to write transcripts from
			f, err := os.OpenFile(filepath.Join(record, e.name+"-"+filepath.Base(file)), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(f, "$ %s\n%s\n", strings.ReplaceAll(x.command, "\n", "\n> "), got)
			f.Close()
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:%d: %s\n%s", file, x.line, x.command, diff)
		}
	}
}

// wire sends one request, "[keys ]METHOD TARGET[ MEDIA-TYPE]" and a body, and shows the answer.
func (e *engine) wire(t *testing.T, request string) string {
	t.Helper()
	line, body, _ := strings.Cut(request, "\n")
	line, keys := strings.CutPrefix(line, "keys ")
	words := strings.Fields(line)
	if len(words) < 2 {
		t.Fatalf("%s: no request", request)
	}
	ctx, cancel := context.WithTimeout(t.Context(), typed)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, words[0], "http://d"+words[1], strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if len(words) > 2 {
		r.Header.Set("Content-Type", words[2])
	} else if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", strings.TrimPrefix(e.host, "unix://"))
	}}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(r)
	if err != nil {
		return fmt.Sprintln(err)
	}
	defer resp.Body.Close()
	stuck := time.AfterFunc(20*time.Second, cancel) // a stream
	defer stuck.Stop()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		data = fmt.Append(data, "\nand then: ", err)
	}
	return showAnswer(resp, data, keys)
}

func showAnswer(resp *http.Response, data []byte, keys bool) string {
	var out strings.Builder
	fmt.Fprintln(&out, strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Content-Type"))))
	var failed struct{ Message *string }
	var value any
	switch {
	case json.Unmarshal(data, &failed) == nil && failed.Message != nil:
		fmt.Fprintln(&out, *failed.Message)
	case keys && json.Unmarshal(data, &value) == nil:
		showKeys(&out, "", value)
	default:
		text := string(bytes.TrimSpace(data))
		if len(text) > 200 {
			text = text[:200] + "..."
		}
		if text != "" {
			fmt.Fprintln(&out, text)
		}
	}
	return out.String()
}

// showKeys lists the names of an object's fields, and of those in it; of a list's only those of the first.
func showKeys(w io.Writer, path string, value any) {
	switch v := value.(type) {
	case []any:
		if len(v) > 0 {
			showKeys(w, path+"[]", v[0])
		}
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		fmt.Fprintf(w, "%s: %s\n", strings.TrimPrefix(path, "."), strings.Join(keys, " "))
		for _, k := range keys {
			showKeys(w, path+"."+k, v[k])
		}
	}
}
