package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"den/internal/oci"
	"den/internal/registry"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// sink is a registry that only takes uploads, as strictly as the
// specification allows, and tells what it was asked.
type sink struct {
	mu       sync.Mutex
	sessions map[string][]byte
	blobs    map[digest.Digest][]byte
	log      []string
	n        int
	// trouble may answer in the sink's place. body is what it is to take first.
	trouble func(s *sink, w http.ResponseWriter, r *http.Request) bool
}

func newSink(trouble func(*sink, http.ResponseWriter, *http.Request) bool) *sink {
	return &sink{sessions: map[string][]byte{}, blobs: map[digest.Digest][]byte{}, trouble: trouble}
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Path == "/v2/" {
		return
	}
	line := r.Method
	if cr := r.Header.Get("Content-Range"); cr != "" {
		line += " " + cr
	}
	s.log = append(s.log, line)
	if s.trouble != nil && s.trouble(s, w, r) {
		return
	}
	id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch r.Method {
	case http.MethodHead:
		data, ok := s.blobs[digest.Digest(id)]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	case http.MethodPost:
		s.n++
		id = fmt.Sprint("session", s.n)
		s.sessions[id] = []byte{}
		s.accepted(w, r, id)
	case http.MethodGet:
		if _, ok := s.sessions[id]; !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		s.accepted(w, r, id)
	case http.MethodPatch:
		s.patch(w, r, id)
	case http.MethodPut:
		s.put(w, r, id)
	}
}

func (s *sink) accepted(w http.ResponseWriter, r *http.Request, id string) {
	w.Header().Set("Location", "/v2/app/blobs/uploads/"+id+"?state=1")
	if n := len(s.sessions[id]); n > 0 {
		w.Header().Set("Range", fmt.Sprintf("0-%d", n-1))
	} else {
		w.Header().Set("Range", "0-0")
	}
	if r.Method == http.MethodGet {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *sink) patch(w http.ResponseWriter, r *http.Request, id string) {
	var from, to int
	have, ok := s.sessions[id]
	if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "%d-%d", &from, &to); !ok || err != nil || from != len(have) {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || len(body) != to-from+1 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.sessions[id] = append(have, body...)
	s.accepted(w, r, id)
}

func (s *sink) put(w http.ResponseWriter, r *http.Request, id string) {
	have, ok := s.sessions[id]
	body, err := io.ReadAll(r.Body)
	if !ok || err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	all := append(have, body...)
	want := digest.Digest(r.URL.Query().Get("digest"))
	if digest.FromBytes(all) != want {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}`)
		return
	}
	s.blobs[want] = all
	delete(s.sessions, id)
	w.WriteHeader(http.StatusCreated)
}

// take reads n bytes of the body into the session, as a registry that wrote
// them before the connection broke.
func (s *sink) take(r *http.Request, n int64) {
	id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	data, _ := io.ReadAll(io.LimitReader(r.Body, n))
	s.sessions[id] = append(s.sessions[id], data...)
}

// wantBlob fails unless the sink got data by the requests in log.
func (s *sink) wantBlob(t *testing.T, data []byte, log ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(s.blobs[digest.FromBytes(data)], data) {
		t.Error("the blob is not there")
	}
	if !slices.Equal(s.log, log) {
		t.Errorf("requests:\n%s\nwant:\n%s", strings.Join(s.log, "\n"), strings.Join(log, "\n"))
	}
}

func TestUploadIsOneRequest(t *testing.T) {
	s := newSink(nil)
	b := newBench(t, nil)
	repo := serve(t, s) + "/app"
	data := randomBytes(t, 300_000)
	var seen []int64
	err := b.PushBlob(t.Context(), repo, descriptor(data), opener(data), func(n int64) { seen = append(seen, n) })
	if err != nil {
		t.Fatal(err)
	}
	s.wantBlob(t, data, "HEAD", "POST", "PUT")
	if !slices.IsSorted(seen) || seen[len(seen)-1] != int64(len(data)) {
		t.Errorf("progress: %v", seen)
	}
	b.push(t, repo, data)
	s.wantBlob(t, data, "HEAD", "POST", "PUT", "HEAD")
}

func TestEmptyBlobIsUploaded(t *testing.T) {
	s := newSink(nil)
	newBench(t, nil).push(t, serve(t, s)+"/app", nil)
	s.wantBlob(t, nil, "HEAD", "POST", "PUT")
}

func TestInterruptedUploadGoesOnAtTheReportedOffset(t *testing.T) {
	var tries int
	s := newSink(func(s *sink, w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut && r.Method != http.MethodPatch {
			return false
		}
		if tries++; tries > 2 {
			return false
		}
		s.take(r, 100_000)
		breakOff()
		return true
	})
	b := newBench(t, nil)
	data := randomBytes(t, 300_000)
	b.push(t, serve(t, s)+"/app", data)
	s.wantBlob(t, data, "HEAD", "POST", "PUT", "GET", "PATCH 100000-299999", "GET", "PATCH 200000-299999", "PUT")
}

func TestUploadOfAProcessThatDiedGoesOn(t *testing.T) {
	data := randomBytes(t, 300_000)
	d := descriptor(data)
	ctx, cancel := context.WithCancel(t.Context())
	s := newSink(func(s *sink, w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && ctx.Err() == nil {
			s.take(r, 200_000)
			cancel() // the process is gone
			breakOff()
		}
		return false
	})
	repo := serve(t, s) + "/app"
	var at []string
	note := func(place string) { at = append(at, place) }
	if err := newBench(t, nil).ResumeBlob(ctx, repo, d, registry.Session{Note: note}, opener(data), nil); err == nil {
		t.Fatal("pushed")
	}
	last := at[len(at)-1]
	var first int64 = -1
	moved := func(n int64) { // the offset that it begins at
		if first < 0 {
			first = n
		}
	}
	if err := newBench(t, nil).ResumeBlob(t.Context(), repo, d, registry.Session{At: last, Note: note}, opener(data), moved); err != nil {
		t.Fatal(err)
	}
	s.wantBlob(t, data, "HEAD", "POST", "PUT", "GET", "PATCH 200000-299999", "PUT")
	if first != 200_000 || at[len(at)-1] != "" {
		t.Errorf("it went on at %d, and ends with a place to go on at: %q", first, at)
	}
	// A place that the registry does not know any more costs one question.
	other := randomBytes(t, 1000)
	if err := newBench(t, nil).ResumeBlob(t.Context(), repo, descriptor(other), registry.Session{At: last}, opener(other), nil); err != nil {
		t.Fatal(err)
	}
	s.wantBlob(t, other, "HEAD", "POST", "PUT", "GET", "PATCH 200000-299999", "PUT", "GET", "HEAD", "POST", "PUT")
}

func TestLostSessionIsBegunAnew(t *testing.T) {
	s := newSink(func(s *sink, w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && s.n == 1 {
			s.take(r, 100_000)
			clear(s.sessions)
			breakOff()
		}
		return false
	})
	b := newBench(t, func(o *registry.Options) { o.ChunkBytes = 200_000 })
	data := randomBytes(t, 300_000)
	b.push(t, serve(t, s)+"/app", data)
	s.wantBlob(t, data, "HEAD", "POST", "PUT", "GET", "HEAD", "POST", "PATCH 0-199999", "PATCH 200000-299999", "PUT")
}

func TestLostAnswerToAFinishedUploadIsFoundOut(t *testing.T) {
	s := newSink(nil)
	var once sync.Once
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lose := false
		if r.Method == http.MethodPut {
			once.Do(func() { lose = true })
		}
		s.ServeHTTP(w, r)
		if lose {
			breakOff()
		}
	}))
	b := newBench(t, nil)
	data := randomBytes(t, 1000)
	b.push(t, host+"/app", data)
	s.wantBlob(t, data, "HEAD", "POST", "PUT", "GET", "HEAD")
}

func TestUploadTooLargeForTheRegistryGoesInChunks(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	s := newSink(func(s *sink, w http.ResponseWriter, r *http.Request) bool {
		if r.ContentLength > limit {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		}
		return false
	})
	b := newBench(t, nil)
	data := randomBytes(t, 3<<20)
	b.push(t, serve(t, s)+"/app", data)
	if !bytes.Equal(s.blobs[digest.FromBytes(data)], data) {
		t.Error("the blob is not there")
	}
}

func TestRegistryThatTakesNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func(*sink, http.ResponseWriter, *http.Request) bool{
		"always too large": func(s *sink, w http.ResponseWriter, r *http.Request) bool {
			if r.ContentLength > 0 {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			}
			return r.ContentLength > 0
		},
		"always breaks off": func(s *sink, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				breakOff()
			}
			return false
		},
		"always forgets": func(s *sink, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			return false
		},
		"takes a byte at a time": func(s *sink, w http.ResponseWriter, r *http.Request) bool {
			switch r.Method {
			case http.MethodPut:
				breakOff()
			case http.MethodPatch:
				s.take(r, 1)
				s.accepted(w, r, "session1")
				return true
			}
			return false
		},
		"names no place": func(s *sink, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusAccepted)
				return true
			}
			return false
		},
		"has more than there is": func(s *sink, w http.ResponseWriter, r *http.Request) bool {
			switch r.Method {
			case http.MethodPut:
				breakOff()
			case http.MethodGet:
				w.Header().Set("Range", "0-99999999")
				w.WriteHeader(http.StatusNoContent)
				return true
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink(trouble)
			b := newBench(t, nil)
			data := randomBytes(t, 2<<20)
			if err := b.PushBlob(t.Context(), serve(t, s)+"/app", descriptor(data), opener(data), nil); err == nil {
				t.Error("no error")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.log) > 60 {
				t.Errorf("%d requests before it gave up", len(s.log))
			}
		})
	}
}

func TestSourceThatFailsEndsTheUpload(t *testing.T) {
	data := randomBytes(t, 100_000)
	broken := errors.New("disk broke")
	for name, open := range map[string]func(int64) (io.ReadCloser, error){
		"at once": func(int64) (io.ReadCloser, error) { return nil, broken },
		"later": func(int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(data[:50_000]), failing{broken})), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			err := b.PushBlob(t.Context(), serve(t, newSink(nil))+"/app", descriptor(data), open, nil)
			if !errors.Is(err, broken) || len(b.slept) > 0 {
				t.Errorf("got %v after %d waits", err, len(b.slept))
			}
		})
	}
	b := newBench(t, nil)
	err := b.PushBlob(t.Context(), serve(t, newSink(nil))+"/app", descriptor(data), opener(data[:50_000]), nil)
	if err == nil || !strings.Contains(err.Error(), "unexpected EOF after 50000 of 100000 bytes") {
		t.Errorf("short source: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestWrongBytesAreRefusedByTheRegistry(t *testing.T) {
	b := newBench(t, nil)
	d := descriptor([]byte("right"))
	err := b.PushBlob(t.Context(), serve(t, newSink(nil))+"/app", d, opener([]byte("wrong")), nil)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "digest_invalid") {
		t.Errorf("got %v", err)
	}
}

func TestMountSavesTheUpload(t *testing.T) {
	data := randomBytes(t, 1000)
	d := descriptor(data)
	s := newSink(func(s *sink, w http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		if r.Method != http.MethodPost || q.Get("from") != "team/base" || q.Get("mount") != string(d.Digest) {
			return false
		}
		s.blobs[d.Digest] = data
		w.WriteHeader(http.StatusCreated)
		return true
	})
	host := serve(t, s)
	b := newBench(t, nil)
	ok, err := b.MountBlob(t.Context(), host+"/app", host+"/team/base", d)
	if err != nil || !ok {
		t.Fatalf("mount: %v, %v", ok, err)
	}
	b.push(t, host+"/app", data)
	s.wantBlob(t, data, "POST", "HEAD")
	if ok, err = b.MountBlob(t.Context(), host+"/app", "elsewhere.example.com/base", d); ok || err != nil {
		t.Errorf("mount across registries: %v, %v", ok, err)
	}
}

func TestUploadGoesOnInTheSessionOfARefusedMount(t *testing.T) {
	s := newSink(nil)
	repo := serve(t, s)
	b := newBench(t, nil)
	data := randomBytes(t, 1000)
	if ok, err := b.MountBlob(t.Context(), repo+"/app", repo+"/base", descriptor(data)); ok || err != nil {
		t.Fatalf("mount: %v, %v", ok, err)
	}
	b.push(t, repo+"/app", data)
	s.wantBlob(t, data, "POST", "PUT")
}

func TestMountThatIsDeniedIsNoError(t *testing.T) {
	repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	ok, err := newBench(t, nil).MountBlob(t.Context(), repo+"/app", repo+"/base", descriptor([]byte("x")))
	if ok || err != nil {
		t.Errorf("mount: %v, %v", ok, err)
	}
}

func TestManifestThatTheRegistryChangesIsAnError(t *testing.T) {
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", string(digest.FromString("other")))
		w.WriteHeader(http.StatusCreated)
	}))
	b := newBench(t, nil)
	_, err := b.PushManifest(t.Context(), host+"/app:v1", oci.MediaTypeManifest, image(nil, nil))
	if err == nil || !strings.Contains(err.Error(), "stored something else") {
		t.Errorf("got %v", err)
	}
}

func TestUploadsRunBesideEachOther(t *testing.T) {
	host := serve(t, good())
	b := newBench(t, nil)
	var all sync.WaitGroup
	for range 16 {
		data := randomBytes(t, 50_000)
		all.Go(func() {
			if err := b.PushBlob(t.Context(), host+"/app", descriptor(data), opener(data), nil); err != nil {
				t.Error(err)
			}
			if ok, err := b.HasBlob(context.Background(), host+"/app", descriptor(data)); !ok || err != nil {
				t.Errorf("has: %v, %v", ok, err)
			}
		})
	}
	all.Wait()
}
