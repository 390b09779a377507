package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/common"

	"den/internal/socket"
)

func listener(t *testing.T, a socket.Address) *socket.Listener {
	t.Helper()
	ls, err := socket.Listen(context.Background(), a, socket.Options{GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	return ls[0]
}

// get asks over a unix socket.
func get(ctx context.Context, path, url string) (int, string, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d"+url, nil)
	if err != nil {
		return 0, "", err
	}
	answer, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(b), err
}

func TestWhoComesBeforeTheStoreIsOpenWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	l := listener(t, socket.Address{Network: socket.Unix, Name: path})
	g := newGate("1.2", func() {})
	base, cancel := context.WithCancel(t.Context())
	s := newServers(base, withDefaults(Options{}), ServeOptions{Listeners: []*socket.Listener{l}}, g)
	s.start()
	type answer struct {
		body string
		err  error
	}
	early := make(chan answer)
	go func() {
		_, body, err := get(t.Context(), path, "/x")
		early <- answer{body, err}
	}()
	for g.lastUsed(); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		busy := g.busy
		g.mu.Unlock()
		if busy == 1 {
			break
		}
	}
	select {
	case a := <-early:
		t.Fatalf("answered before it was open: %+v", a)
	default:
	}
	// What needs no store is answered at once.
	if code, body, err := get(t.Context(), path, "/v1.41/_ping"); err != nil || code != http.StatusOK || body != "OK" {
		t.Errorf("/_ping while the store is being opened: %d %q %v", code, body, err)
	}
	g.open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "open") }))
	if a := <-early; a.err != nil || a.body != "open" {
		t.Errorf("%+v", a)
	}
	s.end(cancel)
	if _, _, err := get(t.Context(), path, "/"); err == nil {
		t.Error("somebody answers after the end")
	}
}

func TestServerRestsOnceAfterRequestsHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rests := 0
		g := newGate("1.2", func() { rests++ })
		defer g.end()
		expect := func(when string, n int) {
			t.Helper()
			synctest.Wait()
			if rests != n {
				t.Errorf("%s: den has rested %d times, want %d", when, rests, n)
			}
		}
		ask := func() {
			g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/_ping", nil))
		}
		time.Sleep(restAfter - time.Millisecond)
		g.open(http.NotFoundHandler())
		time.Sleep(restAfter - time.Millisecond)
		ask()
		expect("before its time", 0)
		time.Sleep(restAfter)
		expect("after a request", 1)
		time.Sleep(10 * restAfter)
		expect("and nothing since", 1)
		ask()
		time.Sleep(restAfter)
		expect("after another request", 2)
	})
}

func TestPortForHealthChecksAnswersWithASentence(t *testing.T) {
	l := listener(t, socket.Address{Network: socket.TCP, Name: "127.0.0.1:0"})
	base, cancel := context.WithCancel(t.Context())
	s := newServers(base, withDefaults(Options{}), ServeOptions{Refusing: []*socket.Listener{l}}, newGate("1.2", func() {}))
	s.start()
	defer s.end(cancel)
	r, err := http.Get("http://" + l.Address.Name + "/_ping")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var e common.ErrorResponse
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.StatusCode != http.StatusBadRequest || !strings.Contains(e.Message, "DOCKER_TLS_VERIFY=1") {
		t.Errorf("%d %+v %v", r.StatusCode, e, err)
	}
}

func TestIdleServerEnds(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.sock")
	l := listener(t, socket.Address{Network: socket.Unix, Name: path})
	o := Options{StoreRoot: filepath.Join(dir, "store"), DataRoot: filepath.Join(dir, "engine"), Version: "test"}
	if !privileged() {
		t.Skip("needs root with CAP_SYS_ADMIN: others enter a user namespace first")
	}
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(t.Context(), o, ServeOptions{Listeners: []*socket.Listener{l}, IdleExit: 50 * time.Millisecond})
	}()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, _, err := get(t.Context(), path, "/_ping"); err == nil {
		t.Error("somebody answers after the end")
	}
}

func TestServerThatCannotOpenSaysWhy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.sock")
	l := listener(t, socket.Address{Network: socket.Unix, Name: path})
	err := Serve(t.Context(), Options{StoreRoot: filepath.Join(dir, "store"), DataRoot: filepath.Join(dir, "engine"), Durability: "nonsense"},
		ServeOptions{Listeners: []*socket.Listener{l}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("%v", err)
	}
}
