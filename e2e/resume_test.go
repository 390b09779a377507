package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// A keeper is before a registry and keeps what arrives of a broken upload, as
// the specification has it; Debian's registry drops the part of a single request.
type keeper struct {
	t *testing.T
	*front
	half int64 // of the second large upload are kept

	mu      sync.Mutex
	large   int               // uploads so far
	first   string            // URL of the blob of the first one
	reached chan struct{}     // closed when half of the other is kept
	gone    chan struct{}     // closed when its client is
	kept    map[string]string // where an upload's path goes on
	got     int64             // bytes of uploads since the client is gone
}

func newKeeper(t *testing.T, half int64) *keeper {
	k := &keeper{
		t: t, half: half, kept: map[string]string{},
		reached: make(chan struct{}), gone: make(chan struct{}),
	}
	k.front = newFront(t, httptest.NewServer, k.guard)
	return k
}

type countedBody struct {
	io.ReadCloser
	add func(int)
}

func (c countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.add(n)
	return n, err
}

func (k *keeper) guard(w http.ResponseWriter, r *http.Request) bool {
	if !strings.Contains(r.URL.Path, "/blobs/uploads/") {
		return false
	}
	select {
	case <-k.gone:
		return k.again(w, r)
	default:
	}
	if r.Method != http.MethodPut || r.ContentLength < 2*k.half {
		return false
	}
	k.mu.Lock()
	k.large++
	n := k.large
	k.mu.Unlock()
	if n == 1 {
		repo, _, _ := strings.Cut(r.URL.Path, "uploads/")
		k.mu.Lock()
		k.first = "http://" + env.registry + repo + r.URL.Query().Get("digest")
		k.mu.Unlock()
		return false
	}
	k.keep(r)
	close(k.reached)
	<-k.gone
	panic(http.ErrAbortHandler)
}

// whole says whether the first large blob has arrived.
func (k *keeper) whole() bool {
	k.mu.Lock()
	first := k.first
	k.mu.Unlock()
	resp, err := http.Head(first)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// keep hands the first half of an upload to the registry as a chunk.
func (k *keeper) keep(r *http.Request) {
	part, err := io.ReadAll(io.LimitReader(r.Body, k.half))
	if err != nil {
		k.t.Error(err)
	}
	u := url.URL{Scheme: "http", Host: env.registry, Path: r.URL.Path, RawQuery: r.URL.RawQuery}
	q := u.Query()
	q.Del("digest")
	u.RawQuery = q.Encode()
	req, err := http.NewRequest(http.MethodPatch, u.String(), bytes.NewReader(part))
	if err != nil {
		k.t.Error(err)
		return
	}
	req.Header.Set("Content-Range", fmt.Sprintf("0-%d", k.half-1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusAccepted {
		k.t.Errorf("the registry does not take a chunk: %v, %v", resp, err)
		return
	}
	resp.Body.Close()
	k.mu.Lock()
	k.kept[r.URL.Path] = strings.Replace(resp.Header.Get("Location"), env.registry, k.host(), 1)
	k.mu.Unlock()
}

// again answers those who come back, and counts what they send.
func (k *keeper) again(w http.ResponseWriter, r *http.Request) bool {
	k.mu.Lock()
	at := k.kept[r.URL.Path]
	k.mu.Unlock()
	if r.Method == http.MethodGet && at != "" {
		w.Header().Set("Location", at)
		w.Header().Set("Range", fmt.Sprintf("0-%d", k.half-1))
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	r.Body = countedBody{r.Body, func(n int) {
		k.mu.Lock()
		k.got += int64(n)
		k.mu.Unlock()
	}}
	return false
}

func TestKilledPushSendsOnlyTheRest(t *testing.T) {
	t.Parallel()
	everyRung(t, func(t *testing.T, d *den) {
		const layer, half = 4_000_000, 1_900_000
		k := newKeeper(t, half)
		name := k.through(newName(t))
		noise := make([]byte, 2*layer)
		_, _ = rand.Read(noise)
		d.run("build", "-q", "-t", name, d.dir(files{
			"Dockerfile": "FROM scratch\nCOPY a /\nCOPY b /\n", "a": string(noise[:layer]), "b": string(noise[layer:]),
		}))
		cmd := d.command(context.Background(), "push", name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-k.reached
		// The other large layer has arrived when the registry says so.
		d.eventually("the first large layer is there", k.whole)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		close(k.gone)
		d.run("push", "-q", name)
		k.mu.Lock()
		defer k.mu.Unlock()
		// gzip and tar add a little, and there is the configuration.
		if most := int64(layer - half + 100_000); k.got > most || k.got < layer-half {
			t.Errorf("the second push sent %d bytes, want the rest of one layer, %d, and little more", k.got, layer-half)
		}
		if img := fetchImage(t, strings.Replace(name, k.host(), env.registry, 1)); img.tree["a"].Size != layer || img.tree["b"].Size != layer {
			t.Errorf("the files are %+v and %+v", img.tree["a"], img.tree["b"])
		}
	})
}
