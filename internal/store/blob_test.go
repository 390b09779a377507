package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

func TestBlobReadsWhatWasPut(t *testing.T) {
	s := tempStore(t)
	b, err := s.PutBlob(t.Context(), strings.NewReader("hello"))
	must(t, err)
	defer b.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := io.ReadAll(b.Reader()); err != nil || string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if b.Size() != 5 || b.Digest() != digest.FromString("hello") {
		t.Errorf("got %d bytes, %s", b.Size(), b.Digest())
	}
}

func TestSecondPutAdoptsTheFirst(t *testing.T) {
	s := tempStore(t)
	first, err := s.PutBlob(t.Context(), strings.NewReader("hello"))
	must(t, err)
	second, err := s.PutBlob(t.Context(), strings.NewReader("hello"))
	must(t, err)
	if first.file != second.file {
		t.Error("one process has two leases on one object")
	}
	must(t, errors.Join(first.Close(), second.Close(), second.Close()))
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestEmptyBlobIsABlob(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "")
	b, err := s.Blob(t.Context(), d)
	must(t, err)
	must(t, b.Close())
}

func TestTornBlobIsAMiss(t *testing.T) {
	s := tempStore(t)
	d := putBlob(t, s, "hello")
	path := s.path(blobObject(d).rel())
	must(t, os.Chmod(path, 0o644))
	must(t, os.Truncate(path, 0))
	_, err := s.Blob(t.Context(), d)
	mustBeGone(t, err)
	putBlob(t, s, "hello")
	mustBeSound(t, s)
}

// The winner of the name is there when the loser is told so and gone when it is
// asked for: a torn blob that is discarded shows it as the collector would.
func TestPutBlobOutlivesAVanishingWinner(t *testing.T) {
	s := tempStore(t)
	d := digest.FromString("hello")
	must(t, os.MkdirAll(s.path("blobs", "sha256"), 0o755))
	must(t, os.WriteFile(s.path("blobs", "sha256", d.Encoded()), nil, 0o444))
	b, err := s.PutBlob(t.Context(), strings.NewReader("hello"))
	must(t, err)
	if b.Digest() != d || b.Size() != 5 {
		t.Errorf("got %s of %d bytes", b.Digest(), b.Size())
	}
	must(t, b.Close())
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestBlobRefusesForeignNames(t *testing.T) {
	s := tempStore(t)
	for _, d := range []oci.Digest{"", "sha256:../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		if _, err := s.Blob(t.Context(), d); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v", d, err)
		}
	}
}

// A reader who means harm may hold the lock for ever.
func TestLockedBlobIsReadWithoutALease(t *testing.T) {
	s := tempStore(t)
	s.busyWait = 0
	d := putBlob(t, s, "hello")
	f, err := os.Open(s.path(blobObject(d).rel()))
	must(t, err)
	defer f.Close()
	must(t, sys.Flock(f, unix.LOCK_EX))
	b, err := s.Blob(t.Context(), d)
	must(t, err)
	defer b.Close()
	if got, err := io.ReadAll(b.Reader()); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A source counts fetches of text, the first of which may end early.
type source struct {
	text    string
	breakAt int // bytes after which the first fetch breaks, 0 for never
	offsets []int64
}

var errBroken = errors.New("connection reset")

func (s *source) fetch(_ context.Context, offset int64) (io.ReadCloser, error) {
	s.offsets = append(s.offsets, offset)
	r := io.Reader(strings.NewReader(s.text[offset:]))
	if s.breakAt > 0 && len(s.offsets) == 1 {
		r = io.MultiReader(strings.NewReader(s.text[offset:s.breakAt]), brokenReader{})
	}
	return io.NopCloser(r), nil
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func (s *source) ingest(tee io.Writer) Ingest {
	return Ingest{Digest: digest.FromString(s.text), SizeBytes: int64(len(s.text)), Fetch: s.fetch, Tee: tee}
}

func TestIngestResumesWhereItBroke(t *testing.T) {
	s := tempStore(t)
	src := &source{text: strings.Repeat("0123456789", 100_000), breakAt: 400_000}
	var tee bytes.Buffer
	if _, err := s.Ingest(t.Context(), src.ingest(&tee)); !errors.Is(err, errBroken) {
		t.Fatalf("first try: %v", err)
	}
	tee.Reset()
	var moved int64
	in := src.ingest(&tee)
	in.Moved = func(n int64) { moved = n }
	b, err := s.Ingest(t.Context(), in)
	must(t, err)
	must(t, b.Close())
	if len(src.offsets) != 2 || src.offsets[1] != 400_000 {
		t.Errorf("fetched from %v, want 0 and 400000", src.offsets)
	}
	if tee.String() != src.text || moved != int64(len(src.text)) {
		t.Errorf("the tee got %d bytes, Moved %d, want %d", tee.Len(), moved, len(src.text))
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestIngestOfWhatIsThereFillsTheTee(t *testing.T) {
	s := tempStore(t)
	src := &source{text: "hello"}
	putBlob(t, s, src.text)
	var tee bytes.Buffer
	b, err := s.Ingest(t.Context(), src.ingest(&tee))
	must(t, err)
	must(t, b.Close())
	if tee.String() != "hello" || len(src.offsets) != 0 {
		t.Errorf("tee %q, fetched from %v", tee.String(), src.offsets)
	}
}

func TestIngestRefusesWrongBytes(t *testing.T) {
	for name, c := range map[string]struct {
		promise int64
		body    string
		want    func(error) bool
	}{
		"other bytes":    {5, "HELLO", func(err error) bool { _, ok := errors.AsType[*oci.DigestError](err); return ok }},
		"unknown length": {-1, "HELLO!", func(err error) bool { _, ok := errors.AsType[*oci.DigestError](err); return ok }},
		"too long":       {5, "hello, and so on without end", errdefs.IsDataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			s := tempStore(t)
			in := (&source{text: "hello"}).ingest(nil)
			in.SizeBytes = c.promise
			in.Fetch = func(context.Context, int64) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader(c.body)), nil
			}
			_, err := s.Ingest(t.Context(), in)
			if !c.want(err) {
				t.Errorf("got %v", err)
			}
			if r := mustBeSound(t, s); r.Objects > 0 || len(r.Leftovers) > 0 {
				t.Errorf("left over: %+v", r)
			}
		})
	}
}

func TestIngestOfAShortBodyKeepsItForTheNextTry(t *testing.T) {
	s := tempStore(t)
	src := &source{text: "hello"}
	in := src.ingest(nil)
	in.Fetch = func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("hel")), nil
	}
	if _, err := s.Ingest(t.Context(), in); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("got %v", err)
	}
	b, err := s.Ingest(t.Context(), src.ingest(nil))
	must(t, err)
	must(t, b.Close())
	if len(src.offsets) != 1 || src.offsets[0] != 3 {
		t.Errorf("fetched from %v, want 3", src.offsets)
	}
}

func TestIngestRefusesAWrongPromiseAboutAKnownBlob(t *testing.T) {
	s := tempStore(t)
	src := &source{text: "hello"}
	putBlob(t, s, "hello")
	in := src.ingest(nil)
	in.SizeBytes = 6
	if _, err := s.Ingest(t.Context(), in); !errdefs.IsDataLoss(err) {
		t.Errorf("got %v", err)
	}
}

func TestIngestStopsWithItsContext(t *testing.T) {
	s := tempStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	in := (&source{text: "hello"}).ingest(nil)
	in.Fetch = func(context.Context, int64) (io.ReadCloser, error) {
		cancel()
		return io.NopCloser(strings.NewReader("hello")), nil
	}
	if _, err := s.Ingest(ctx, in); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestIngestReportsAFailingTee(t *testing.T) {
	s := tempStore(t)
	r, w := io.Pipe()
	must(t, r.CloseWithError(errBroken))
	if _, err := s.Ingest(t.Context(), (&source{text: "hello"}).ingest(w)); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

func TestIngestInManyGoroutinesFetchesOnce(t *testing.T) {
	s := tempStore(t)
	src := &source{text: strings.Repeat("x", 1<<20)}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var tee bytes.Buffer
			b, err := s.Ingest(t.Context(), src.ingest(&tee))
			if err != nil {
				t.Error(err)
				return
			}
			if tee.Len() != len(src.text) {
				t.Errorf("the tee got %d bytes", tee.Len())
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(src.offsets) != 1 {
		t.Errorf("fetched %d times", len(src.offsets))
	}
}
