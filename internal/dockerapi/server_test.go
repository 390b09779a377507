package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/system"

	"den/internal/engine"
	"den/internal/progress"
)

// ask sends one request to s and returns the answer with its body.
func ask(t *testing.T, s http.Handler, method, target, body string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	resp := w.Result()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(data)
}

// message is the sentence of an error's body.
func message(t *testing.T, body string) string {
	t.Helper()
	var e struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("body %q: %v", body, err)
	}
	return e.Message
}

func TestPingSaysWhatClientsNegotiateBy(t *testing.T) {
	s := New(Options{Version: "1.2"})
	for _, target := range []string{"/_ping", "/v1.24/_ping", "/v1.56/_ping"} {
		for _, method := range []string{"GET", "HEAD"} {
			resp, body := ask(t, s, method, target, "")
			if resp.StatusCode != 200 {
				t.Fatalf("%s %s: status %d", method, target, resp.StatusCode)
			}
			for name, want := range map[string]string{
				"Api-Version": "1.56", "Ostype": "linux", "Docker-Experimental": "false", "Builder-Version": "1",
				"Swarm": "inactive", "Server": "den/1.2 (linux)", "Pragma": "no-cache",
			} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s %s: %s is %q, want %q", method, target, name, got, want)
				}
			}
			if want := map[string]string{"GET": "OK", "HEAD": ""}[method]; body != want {
				t.Errorf("%s %s: body %q, want %q", method, target, body, want)
			}
		}
	}
}

func TestPingWithoutAnEngineKnowsNothingElse(t *testing.T) {
	whole, ping := New(Options{Version: "1.2"}), NewPing("1.2")
	for _, method := range []string{"GET", "HEAD"} {
		want, wantBody := ask(t, whole, method, "/v1.41/_ping", "")
		got, body := ask(t, ping, method, "/v1.41/_ping", "")
		if diff := cmp.Diff(want.Header, got.Header); diff != "" || body != wantBody || got.StatusCode != want.StatusCode {
			t.Errorf("%s: %d %q, want %d %q; headers: %s", method, got.StatusCode, body, want.StatusCode, wantBody, diff)
		}
	}
	for _, target := range []string{"GET /_ping", "HEAD /v1.24/_ping"} {
		method, path, _ := strings.Cut(target, " ")
		if !ping.Knows(httptest.NewRequest(method, path, nil)) {
			t.Errorf("%s is not known", target)
		}
	}
	for _, target := range []string{"POST /_ping", "GET /v1.23/_ping", "GET /info", "GET /version", "GET /", "GET /_ping/x"} {
		method, path, _ := strings.Cut(target, " ")
		if ping.Knows(httptest.NewRequest(method, path, nil)) {
			t.Errorf("%s is known", target)
		}
	}
}

func TestVersionsOutsideTheRangeGetDockersSentence(t *testing.T) {
	s := New(Options{})
	for target, want := range map[string]string{
		"/v1.23/_ping":             "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
		"/v0.9/_ping":              "client version 0.9 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
		"/v1/_ping":                "client version 1 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
		"/v1.57/_ping":             "client version 1.57 is too new. Maximum supported API version is 1.56",
		"/v2.0/_ping":              "client version 2.0 is too new. Maximum supported API version is 1.56",
		"/v1.99999999999999/_ping": "client version 1.99999999999999 is too new. Maximum supported API version is 1.56",
	} {
		resp, body := ask(t, s, "GET", target, "")
		if resp.StatusCode != 400 || message(t, body) != want {
			t.Errorf("%s: status %d, %q", target, resp.StatusCode, body)
		}
	}
}

func TestRoutesTakeNamesWithSlashes(t *testing.T) {
	var got string
	say := func(what string) handler {
		return func(_ http.ResponseWriter, c *call) error {
			got = what + " " + c.name
			return nil
		}
	}
	s := &Server{table: []route{
		{"GET", "/images/json", say("list"), 0},
		{"GET", "/images/{name}/json", say("inspect"), 0},
		{"DELETE", "/images/{name}", say("remove"), 0},
		{"GET", "/images/{name}/new", say("new"), 40},
	}, Options: Options{Log: slog.New(slog.DiscardHandler)}}
	for _, tt := range []struct{ method, target, want string }{
		{"GET", "/images/json", "list "},
		{"GET", "/v1.41/images/json", "list "},
		{"GET", "/images/busybox/json", "inspect busybox"},
		{"GET", "/images/127.0.0.1:5000/t/bb:1/json", "inspect 127.0.0.1:5000/t/bb:1"},
		{"GET", "/images/a%2Fb/json", "inspect a/b"},
		{"GET", "//images//a//json", "inspect a"},
		{"GET", "/images/json/json", "inspect json"},
		{"DELETE", "/images/a/b", "remove a/b"},
		{"DELETE", "/images/../../etc", "remove ../../etc"},
		{"DELETE", "/images/", ""},
		{"GET", "/v1.39/images/a/new", ""},
		{"GET", "/v1.40/images/a/new", "new a"},
		{"PATCH", "/images/json", ""},
		{"GET", "/", ""},
		{"GET", "/images/a/json/x", ""},
	} {
		got = ""
		resp, body := ask(t, s, tt.method, tt.target, "")
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.method, tt.target, got, tt.want)
		}
		if tt.want == "" && (resp.StatusCode != 404 || message(t, body) != "page not found") {
			t.Errorf("%s %s: status %d, %s", tt.method, tt.target, resp.StatusCode, body)
		}
	}
}

func TestErrorsHaveTheStatusOfTheirClass(t *testing.T) {
	var err error
	s := &Server{Options: Options{Log: slog.New(slog.DiscardHandler)}}
	s.table = []route{{"GET", "/x", func(http.ResponseWriter, *call) error { return err }, 0}}
	for class, status := range map[error]int{
		errdefs.ErrNotFound:           404,
		errdefs.ErrInvalidArgument:    400,
		errdefs.ErrConflict:           409,
		errdefs.ErrAlreadyExists:      409,
		errdefs.ErrFailedPrecondition: 409,
		errdefs.ErrPermissionDenied:   403,
		errdefs.ErrUnauthenticated:    401,
		errdefs.ErrUnavailable:        503,
		errdefs.ErrNotImplemented:     501,
		errdefs.ErrInternal:           500,
		io.ErrUnexpectedEOF:           500,
	} {
		err = fmt.Errorf("do <it>: %w", class)
		resp, body := ask(t, s, "GET", "/x", "")
		if resp.StatusCode != status || message(t, body) != progress.Plain(err.Error()) || strings.Contains(body, `\u`) {
			t.Errorf("%v: status %d, body %s", class, resp.StatusCode, body)
		}
	}
	err = errdefs.ErrNotModified
	if resp, body := ask(t, s, "GET", "/x", ""); resp.StatusCode != 304 || body != "" {
		t.Errorf("not modified: status %d, body %q", resp.StatusCode, body)
	}
}

func TestPanicIsOneRequestsFailure(t *testing.T) {
	var log strings.Builder
	s := &Server{Options: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	s.table = []route{{"GET", "/x", func(http.ResponseWriter, *call) error { panic("ouch") }, 0}}
	resp, body := ask(t, s, "GET", "/x", "")
	if resp.StatusCode != 500 || strings.Contains(body, "ouch") {
		t.Errorf("status %d, body %s", resp.StatusCode, body)
	}
	if !strings.Contains(log.String(), "ouch") {
		t.Errorf("log does not name the panic: %s", log.String())
	}
}

func TestSwarmAndPluginsAreRefusedInDockersWords(t *testing.T) {
	s := New(Options{})
	for _, target := range []string{"GET /swarm", "GET /nodes", "GET /services", "GET /tasks", "GET /secrets", "GET /configs", "POST /services/create"} {
		method, target, _ := strings.Cut(target, " ")
		resp, body := ask(t, s, method, target, "")
		if resp.StatusCode != 503 || !strings.HasPrefix(message(t, body), "This node is not a swarm manager.") {
			t.Errorf("%s: status %d, %s", target, resp.StatusCode, body)
		}
	}
	if resp, body := ask(t, s, "GET", "/plugins", ""); resp.StatusCode != 200 || body != "[]\n" {
		t.Errorf("plugins: status %d, %s", resp.StatusCode, body)
	}
}

func TestInfoCountsContainers(t *testing.T) {
	f := &fake{containers: []*engine.Container{
		{State: engine.State{Running: true}}, {State: engine.State{Running: true, Paused: true}}, {}, {},
	}}
	s := New(Options{Engine: f, Info: func(context.Context) (system.Info, error) { return system.Info{Name: "n"}, nil }})
	_, text := ask(t, s, "GET", "/info", "")
	for key, want := range map[string]any{"Containers": 4.0, "ContainersRunning": 1.0, "ContainersPaused": 1.0, "ContainersStopped": 2.0, "Name": "n"} {
		if got := at(t, text, key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if resp, _ := ask(t, New(Options{}), "GET", "/info", ""); resp.StatusCode != 503 {
		t.Errorf("without facts: status %d", resp.StatusCode)
	}
}
