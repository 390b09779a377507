package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"den/internal/oci"
	"den/internal/registry"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func TestImageGoesThereAndBack(t *testing.T) {
	b := newBench(t, nil)
	repo := serve(t, good()) + "/team/app"
	config, layer := []byte(`{"os":"linux"}`), randomBytes(t, 100_000)
	b.push(t, repo, config)
	b.push(t, repo, layer)
	manifest := image(config, layer)
	pushed, err := b.PushManifest(t.Context(), repo+":v1", oci.MediaTypeManifest, manifest)
	if err != nil {
		t.Fatal(err)
	}

	resolved, err := b.Resolve(t.Context(), repo+":v1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pushed, resolved); diff != "" {
		t.Errorf("resolved differs from pushed (-want +got):\n%s", diff)
	}
	for _, ref := range []string{repo + ":v1", repo + "@" + string(pushed.Digest)} {
		d, body, err := b.Manifest(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body, manifest) || d.Digest != pushed.Digest || d.MediaType != oci.MediaTypeManifest {
			t.Errorf("manifest of %s: got %v, want %v", ref, d, pushed)
		}
	}
	b.wantPull(t, repo, layer)
	got, err := b.SmallBlob(t.Context(), repo, descriptor(config), 1000)
	if err != nil || !bytes.Equal(got, config) {
		t.Errorf("config: got %q, %v", got, err)
	}
}

func TestMissingThingsAreNotFound(t *testing.T) {
	b := newBench(t, nil)
	repo := serve(t, good()) + "/app"
	_, err := b.Resolve(t.Context(), repo+":nosuch")
	if !errdefs.IsNotFound(err) {
		t.Errorf("resolve: %v", err)
	}
	if _, _, err = b.Manifest(t.Context(), repo+":nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("manifest: %v", err)
	}
	if _, err = b.pull(t, repo, descriptor([]byte("x"))); !errdefs.IsNotFound(err) {
		t.Errorf("blob: %v", err)
	}
	has, err := b.HasBlob(t.Context(), repo, descriptor([]byte("x")))
	if has || err != nil {
		t.Errorf("has blob: %v, %v", has, err)
	}
	if len(b.slept) > 0 {
		t.Errorf("waited %v for what is not there", b.slept)
	}
}

func TestDownloadGoesOnWhereItBroke(t *testing.T) {
	data := randomBytes(t, 1<<20)
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			var starts []string
			host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !isBlob(r) {
					return
				}
				starts = append(starts, r.Header.Get("Range"))
				off := 0
				if ranges && r.Header.Get("Range") != "" {
					fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(data)-1, len(data)))
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(data)-off))
				if off > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				if len(starts) < 4 {
					_, _ = w.Write(data[off : len(starts)*200_000])
					w.(http.Flusher).Flush()
					breakOff()
				}
				_, _ = w.Write(data[off:])
			}))
			b := newBench(t, nil)
			b.wantPull(t, host+"/app", data)
			if len(starts) != 4 {
				t.Fatalf("%d requests, want 4: %q", len(starts), starts)
			}
			if starts[0] != "" || starts[3] != "bytes=600000-1048575" {
				t.Errorf("ranges asked for: %q", starts)
			}
		})
	}
}

func TestDownloadStartsAtAnOffset(t *testing.T) {
	b := newBench(t, nil)
	repo := serve(t, good()) + "/app"
	data := randomBytes(t, 1000)
	d := b.push(t, repo, data)
	for _, off := range []int64{0, 1, 999, 1000} {
		r, err := b.Blob(t.Context(), repo, d, off)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, data[off:]) {
			t.Errorf("from %d on: got %d bytes, %v", off, len(got), err)
		}
	}
	if _, err := b.Blob(t.Context(), repo, d, 1001); !errdefs.IsOutOfRange(err) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestStalledDownloadIsTakenUpAgain(t *testing.T) {
	data := randomBytes(t, 10_000)
	var n counter
	release := make(chan struct{})
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			return
		}
		if n.next() == 1 {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data[:5000])
			w.(http.Flusher).Flush()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer close(release)
	b := newBench(t, func(o *registry.Options) { o.StallTimeout = 200 * time.Millisecond })
	b.wantPull(t, host+"/app", data)
}

func TestRegistryThatAlwaysStallsIsGivenUp(t *testing.T) {
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			<-r.Context().Done()
		}
	}))
	b := newBench(t, func(o *registry.Options) { o.StallTimeout, o.Tries = 50*time.Millisecond, 3 })
	_, err := b.pull(t, host+"/app", descriptor([]byte("hello")))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no data for 50ms") {
		t.Errorf("got %v", err)
	}
	if len(b.slept) != 2 {
		t.Errorf("waited %d times, want 2", len(b.slept))
	}
}

func TestCancelEndsAStalledDownload(t *testing.T) {
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			cancel(stop)
			<-r.Context().Done()
		}
	}))
	b := newBench(t, nil)
	_, err := b.Blob(ctx, host+"/app", descriptor([]byte("hello")), 0)
	if !errors.Is(err, stop) {
		t.Errorf("got %v, want %v", err, stop)
	}
}

func TestDrippingRegistryIsGivenUp(t *testing.T) {
	data := randomBytes(t, 1000)
	var n counter
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			return
		}
		off := 0
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
		w.Header().Set("Content-Length", strconv.Itoa(len(data)-off))
		if off > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-999/1000", off))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(data[off : off+1])
		w.(http.Flusher).Flush()
		n.next()
		breakOff()
	}))
	b := newBench(t, nil)
	if _, err := b.pull(t, host+"/app", descriptor(data)); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	if n.count() > 10 {
		t.Errorf("%d requests for a byte each", n.count())
	}
}

func TestConnectionThatDripsIsGivenUp(t *testing.T) {
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			return
		}
		w.Header().Set("Content-Length", "1000")
		for range 1000 {
			if _, err := w.Write([]byte("x")); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-time.After(10 * time.Millisecond): // far less than the silence that is borne
			case <-r.Context().Done():
				return
			}
		}
	}))
	b := newBench(t, func(o *registry.Options) { o.StallTimeout, o.Tries = 200*time.Millisecond, 2 })
	_, err := b.pull(t, host+"/app", oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: descriptor([]byte("x")).Digest, Size: 1000})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no data for 200ms") {
		t.Errorf("got %v", err)
	}
}

func TestLiesAboutLengthAreTold(t *testing.T) {
	data := []byte("hello, world")
	for name, tc := range map[string]struct {
		send func(w http.ResponseWriter)
		want string
	}{
		"says more": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write(make([]byte, 100))
		}, "sends 100 bytes, the descriptor says 12"},
		"says fewer": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "5")
			_, _ = w.Write(data[:5])
		}, "sends 5 bytes, the descriptor says 12"},
		"sends more than it says": {func(w http.ResponseWriter) {
			w.(http.Flusher).Flush() // chunked: no length
			_, _ = w.Write(data)
			_, _ = w.Write(make([]byte, 100))
		}, "sends more than 12 bytes"},
		"sends fewer than it says": {func(w http.ResponseWriter) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(data[:5])
		}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if isBlob(r) {
					tc.send(w)
				}
			}))
			b := newBench(t, nil)
			got, err := b.pull(t, host+"/app", descriptor(data))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q and %v, want an error with %q", got, err, tc.want)
			}
		})
	}
}

func TestRangeThatStartsElsewhereIsRefused(t *testing.T) {
	data := randomBytes(t, 1000)
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			w.Header().Set("Content-Range", "bytes 0-999/1000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data)
		}
	}))
	b := newBench(t, nil)
	_, err := b.Blob(t.Context(), host+"/app", descriptor(data), 500)
	if err == nil || !strings.Contains(err.Error(), "wrongly") {
		t.Errorf("got %v", err)
	}
}

func TestWrongManifestIsRefused(t *testing.T) {
	manifest := image([]byte("{}"), []byte("layer"))
	other := digest.FromString("something else")
	for name, tc := range map[string]struct {
		ref    string
		header string
		body   []byte
		want   string
	}{
		"another digest":          {"@" + string(other), "", manifest, "digest is sha256:"},
		"damaged under a tag":     {":v1", string(other), manifest, "damaged"},
		"not JSON":                {":v1", "", []byte("<html>"), "invalid"},
		"schema 1":                {":v1", "", []byte(`{"schemaVersion":1,"fsLayers":[]}`), "schema 1"},
		"two things at once":      {":v1", "", []byte(`{"schemaVersion":2,"manifests":[],"layers":[]}`), "both"},
		"larger than it may be":   {":v1", "", bytes.Repeat([]byte(" "), oci.MaxManifestBytes+1), "more than 4194304"},
		"nested without an end":   {":v1", "", []byte(strings.Repeat(`[`, 100_000)), "nested"},
		"something else entirely": {":v1", "", []byte(`{"schemaVersion":2}`), "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", oci.MediaTypeManifest)
				if tc.header != "" {
					w.Header().Set("Docker-Content-Digest", tc.header)
				}
				_, _ = w.Write(tc.body)
			}))
			b := newBench(t, nil)
			_, _, err := b.Manifest(t.Context(), host+"/app"+tc.ref)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestResolveFetchesWhereHeadSaysTooLittle(t *testing.T) {
	manifest := image([]byte("{}"), []byte("layer"))
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isManifest(r) && r.Method == http.MethodGet {
			_, _ = w.Write(manifest) // neither type nor digest
		}
	}))
	b := newBench(t, nil)
	d, err := b.Resolve(t.Context(), host+"/app")
	want := oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if diff := cmp.Diff(want, d); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestDownloadsAreBoundedInNumber(t *testing.T) {
	data := randomBytes(t, 100)
	var mu sync.Mutex
	now, most := 0, 0
	repo := serve(t, route(good(), func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			mu.Lock()
			now--
			mu.Unlock()
			return true
		}
		return false
	})) + "/app"
	b := newBench(t, func(o *registry.Options) { o.MaxDownloads = 2 })
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := b.pull(t, repo, descriptor(data)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most > 2 {
		t.Errorf("%d at once, want at most 2", most)
	}
	// A slot that is given back twice or never would show here.
	a, err := b.Blob(t.Context(), repo, descriptor(data), 0)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	a.Close()
	if _, err := a.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read after close: %v", err)
	}
}
