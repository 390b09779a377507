package store

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/oci"
)

func benchStore(b *testing.B, mode durable.Mode) *Store {
	b.Helper()
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "store"), Options{EngineDir: b.TempDir(), Durability: mode})
	must(b, err)
	b.Cleanup(func() { must(b, s.log.Sync()); must(b, s.Close()) })
	return s
}

func BenchmarkAcquireBlob(b *testing.B) {
	s := benchStore(b, durable.None)
	d := putBlob(b, s, "hello")
	for b.Loop() {
		blob, err := s.Blob(b.Context(), d)
		must(b, err)
		must(b, blob.Close())
	}
}

func BenchmarkAcquireLayer(b *testing.B) {
	s := benchStore(b, durable.None)
	d := putLayer(b, s, "hello")
	for b.Loop() {
		l, err := s.Layer(b.Context(), d)
		must(b, err)
		must(b, l.Close())
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, mode := range []durable.Mode{durable.None, durable.Epoch} {
		b.Run("blob/"+string(mode), func(b *testing.B) {
			s := benchStore(b, mode)
			for i := 0; b.Loop(); i++ {
				blob, err := s.PutBlob(b.Context(), strings.NewReader(fmt.Sprint(i)))
				must(b, err)
				must(b, blob.Close())
			}
		})
		b.Run("layer/"+string(mode), func(b *testing.B) {
			s := benchStore(b, mode)
			for i := 0; b.Loop(); i++ {
				d, err := s.NewDraft(b.Context())
				must(b, err)
				l, err := d.Publish(b.Context(), LayerMeta{DiffID: digest.FromString(fmt.Sprint(i))})
				must(b, err)
				must(b, l.Close())
			}
		})
		b.Run("record/"+string(mode), func(b *testing.B) {
			s := benchStore(b, mode)
			for i := 0; b.Loop(); i++ {
				_, err := s.PutRecord(b.Context(), digest.FromString(fmt.Sprint(i)), Record{Op: "RUN true"}, false)
				must(b, err)
			}
		})
	}
}

func BenchmarkRecord(b *testing.B) {
	s := benchStore(b, durable.None)
	key := digest.FromString("key")
	_, err := s.PutRecord(b.Context(), key, Record{Layers: []oci.Digest{key}, Op: "RUN true"}, false)
	must(b, err)
	for b.Loop() {
		_, err := s.Record(b.Context(), key)
		must(b, err)
	}
}

func BenchmarkWork(b *testing.B) {
	s := benchStore(b, durable.None)
	for b.Loop() {
		w, err := s.Work(b.Context(), "bench", "key", nil)
		must(b, err)
		w.Done()
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, objects := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("of %d objects", objects), func(b *testing.B) {
			s := benchStore(b, durable.Epoch)
			fillWith(b, s, objects)
			engine := b.TempDir()
			for b.Loop() {
				again, err := Open(b.Context(), s.Root(), Options{EngineDir: engine})
				must(b, err)
				must(b, again.Close())
			}
		})
	}
}

// cpu is what this process has used of the processors.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCollect removes 10,000 objects that nothing names, and looks at
// 10,000 that are kept.
func BenchmarkCollect(b *testing.B) {
	const objects = 10_000
	run := func(name string, before func(s *Store)) {
		b.Run(name, func(b *testing.B) {
			s := benchStore(b, durable.None)
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				before(s)
				begin := cpu(b)
				b.StartTimer()
				collect(b, s)
				used += cpu(b) - begin
			}
			b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
	run("10000 unnamed blobs", func(s *Store) { fillWith(b, s, objects) })
	run("10000 unnamed layers", func(s *Store) {
		for i := range objects {
			putLayer(b, s, fmt.Sprint(i))
		}
	})
	run("5000 unnamed blobs and 5000 unnamed layers", func(s *Store) {
		fillWith(b, s, objects/2)
		for i := range objects / 2 {
			putLayer(b, s, fmt.Sprint(i))
		}
	})
	run("10000 named blobs", func(s *Store) {
		if exists(s.recordPath(digest.FromString("all"))) {
			return
		}
		var r Record
		for i := range objects {
			r.Blobs = append(r.Blobs, putBlob(b, s, fmt.Sprint(i)))
		}
		_, err := s.PutRecord(b.Context(), digest.FromString("all"), r, false)
		must(b, err)
	})
}
