package dockerapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"den/internal/engine"
	"den/internal/testkit"
)

// hostileNames are what a client may put where a name belongs.
var hostileNames = [...]string{
	"x", "..", "../../etc/passwd", "a/b/c", "%00", "%FF%FE", "ü", "日本語", "%2e%2e%2f", strings.Repeat("a", 5000), "-rf", "$(id)", "a%20b", "a%0Ab", "%25s%25n",
}

// hostileBodies are what a client may send for JSON.
var hostileBodies = [...]string{
	``, `null`, `{}`, `[]`, `"x"`, `1`, `true`, `{`, `{"a":`, "\x00\xff", `{"Image":null,"Cmd":null,"HostConfig":null,"NetworkingConfig":null}`,
	`{"Cmd":{"a":1}}`, `{"Cmd":[1]}`, `{"Container":["x"]}`, `{"Name":{},"Name":1}`, `{"HostConfig":{"Memory":"1g"}}`, `{"HostConfig":{"Memory":1e400}}`, `{"HostConfig":{"Memory":99999999999999999999}}`,
	`{"Image":"x","HostConfig":{"PortBindings":{"80":null,"":null,"a/b/c":[{}]}}}`, `{"Image":"x","Labels":{"a":null}}`, `{"EndpointConfig":{"IPAMConfig":{"IPv4Address":"999.1.1.1"}}}`,
	`{"IPAM":{"Config":[{"Subnet":"10.0.0.0/99"}]}}`, `{"Name":"x","IPAM":{"Config":[null]}}`, `{"Image":"x","HostConfig":{"Mounts":[null,{}]}}`, `{"Image":"x","HostConfig":{"Ulimits":[null]}}`,
	`{"Image":"x","Volumes":{"":{},"rel":{},"/":{}}}`, `{"Image":"x","HostConfig":{"Tmpfs":{"":"","rel":",,,"}}}`, `{"Image":"x","HostConfig":{"ConsoleSize":[99999999,1]}}`, `{"Cmd":["x"],"ConsoleSize":[1]}`,
	`{"Image":"x","ExposedPorts":{"1-70000/tcp":{}}}`, `{"Image":"x","HostConfig":{"Dns":[""],"Links":[":",""],"ExtraHosts":["=",":",""]}}`,
	strings.Repeat(`{"a":`, 20000), `{"Image":"` + strings.Repeat("x", 1<<20) + `"}`,
}

// hostileQueries are what a client may ask with.
var hostileQueries = [...]string{
	"", "%zz", "a;b", "filters=x", "filters=%7B%22label%22%3A1%7D", "filters=" + strings.Repeat("%5B", 5000), "limit=x", "limit=-1", "limit=99999999999999999999", "t=1e9", "h=-1&w=-1", "h=99999999999&w=1",
	"path=", "path=%00", "since=NaN&stdout=1", "until=1.1.1&stdout=1", "tail=-99999999999999999999&stdout=1", "ps_args=-o+%00", "name=%00", "platform=%2F%2F", "signal=%00", "condition=%00", "stream=1&one-shot=1", "size=1&all=1&verbose=1&force=1",
}

// What a client sends is never the server's failure: each answer has a status and a
// body that is docker's, and nothing panics.
func TestHostileRequestsAreAnswered(t *testing.T) {
	var log strings.Builder
	f := &fake{err: notFound("No such container: x"), events: make(chan engine.Event), waits: make(chan engine.WaitResult)}
	close(f.events)
	s := New(Options{Engine: f, Log: slog.New(slog.NewTextHandler(&log, nil)), SocketPath: "/s"})
	try := func(r route, name, query, body string) {
		path := strings.Replace(r.path, "{name}", name, 1)
		target := "/v1.44" + path + "?" + query
		if _, err := url.Parse(target); err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req := httptest.NewRequestWithContext(ctx, r.method, target, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		func() {
			defer func() {
				if p := recover(); p != nil && p != http.ErrAbortHandler {
					t.Errorf("%s %.200s %.200s: panic %v", r.method, target, body, p)
				}
			}()
			s.ServeHTTP(w, req)
		}()
		// 500 is what docker answers when ps has no PID column.
		if w.Code == 500 && !strings.Contains(w.Body.String(), "PID") {
			t.Errorf("%s %.200s %.200s: status %d, %.300s", r.method, target, body, w.Code, w.Body)
		}
		if w.Code >= 400 && (r.method != "HEAD" && message(t, w.Body.String()) == "" || !utf8.Valid(w.Body.Bytes())) {
			t.Errorf("%s %.200s: status %d without a sentence: %q", r.method, target, w.Code, w.Body)
		}
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("%s %.200s: status %d", r.method, target, w.Code)
		}
	}
	for _, area := range [][]route{s.systemRoutes(), s.containerRoutes(), s.volumeRoutes(), s.networkRoutes(), s.eventRoutes()} {
		for _, r := range area {
			if r.path == "/info" {
				continue // that is the wiring's
			}
			for _, n := range hostileNames {
				try(r, n, "path=/", "")
			}
			for _, q := range hostileQueries {
				try(r, "x", q, "")
			}
			if r.method == "POST" {
				for _, b := range hostileBodies {
					try(r, "x", "", b)
				}
			}
		}
	}
	if strings.Contains(log.String(), "panicked") {
		t.Errorf("%.2000s", log.String())
	}
}

// A reader of logs who takes nothing holds up one goroutine and no memory.
func TestSlowLogReadersHoldNothingButTheirConnection(t *testing.T) {
	const readers = 50
	line := []byte(strings.Repeat("x", 1000) + "\n")
	f := &fake{log: func(ctx context.Context, stdout, _ io.Writer) error {
		for ctx.Err() == nil {
			if _, err := stdout.Write(line); err != nil {
				return err
			}
		}
		return ctx.Err()
	}}
	dial := serve(t, New(Options{Engine: f}))
	base := testkit.Holding(t)
	var conns []io.Closer
	for range readers {
		conn := dial()
		fmt.Fprint(conn, "GET /containers/a/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if now := testkit.Holding(t); now.Goroutines > base.Goroutines+3*readers {
		t.Errorf("%d readers take %d goroutines", readers, now.Goroutines-base.Goroutines)
	}
	for _, c := range conns {
		c.Close()
	}
	base.Settle(t, 0, "slow readers left")
}
