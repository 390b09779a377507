package store

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/oci"
)

// holdEverything is a process that only reads the store and means harm: it
// locks all that it can open, exclusively or else shared, what is there and
// what comes, and never lets go.
func holdEverything(ctx context.Context, root string) error {
	limit := unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) // fewer will do
	held := map[uint64]int{}
	for round := 0; ; round++ {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return nil // it went away
			}
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil
			}
			var st unix.Stat_t
			if unix.Fstat(fd, &st) != nil || held[st.Ino] != 0 ||
				unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil && unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) != nil {
				return unix.Close(fd)
			}
			held[st.Ino] = fd
			return nil
		})
		if err != nil {
			return err
		}
		if round == 0 {
			fmt.Println(len(held)) // all that was there is held
		}
	}
}

// harmed makes a store with something in it, and starts a hostile reader of it.
func harmed(t *testing.T) (s *Store, blob, layer oci.Digest) {
	t.Helper()
	root, engine := filepath.Join(t.TempDir(), "store"), t.TempDir()
	s = openStore(t, root, engine)
	blob, layer = putBlob(t, s, "blob"), putLayer(t, s, "layer")
	must(t, s.SetRef(t.Context(), Ref{Name: "kept", Record: Record{Layers: []oci.Digest{layer}, Blobs: []oci.Digest{blob}}}))
	must(t, os.WriteFile(s.path("lock", "gc"), nil, 0o644))     // of a collector that was killed
	must(t, os.WriteFile(s.path("work", "k-left"), nil, 0o644)) // of a build that was killed
	must(t, os.WriteFile(s.path("lock", "ledger"), nil, 0o644)) // of every process with a cap
	mounts, err := s.CacheMounts(t.Context(), []CacheMountRequest{{ID: "apt"}}, nil)
	must(t, err)
	must(t, mounts[0].Close())
	must(t, s.engine.lock.Close()) // the process ends
	s.engine.lock = nil
	cmd := child(t, "hostile", root, "")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it never ends by itself
		_ = cmd.Wait()
	})
	var n int
	if _, err := fmt.Fscan(out, &n); err != nil || n < 10 {
		t.Fatalf("the hostile process holds %d locks: %v", n, err)
	}
	s.busyWait, s.patience = 100*time.Millisecond, 300*time.Millisecond
	return s, blob, layer
}

// A process that may only read the store holds every lock that it can open.
// The writers still open the store, build, name, collect and end.
func TestReaderWhoHoldsEveryLockStopsNobody(t *testing.T) {
	s, blob, layer := harmed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute) // far beyond all the waits
	defer cancel()
	step := func(name string, fn func() error) {
		t.Helper()
		began := time.Now()
		if err := fn(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, time.Since(began).Round(time.Millisecond))
	}
	step("open", func() error {
		again, err := Open(ctx, s.root, Options{EngineDir: t.TempDir(), Durability: durable.Epoch, MaxBytes: 1 << 40, MinFreeBytes: 1})
		if err != nil {
			return err
		}
		again.busyWait, again.patience = s.busyWait, s.patience
		return again.Close()
	})
	step("read what is held", func() error {
		b, err := s.Blob(ctx, blob)
		if err != nil {
			return err
		}
		return b.Close()
	})
	step("make the held layer again", func() error {
		l, err := publishLayer(ctx, s, "layer")
		if err != nil {
			return err
		}
		if l.DiffID() != layer {
			t.Errorf("got %s", l.DiffID())
		}
		return l.Close()
	})
	for i := range 20 {
		text := fmt.Sprintf("new %d", i)
		step("build", func() error {
			w, err := s.Work(ctx, "k", text, nil)
			if err != nil {
				return err
			}
			defer w.Done()
			l, err := publishLayer(ctx, s, text)
			if err != nil {
				return err
			}
			defer l.Close()
			_, err = s.PutRecord(ctx, digest.FromString(text), Record{Layers: []oci.Digest{l.DiffID()}}, false)
			return err
		})
		step("download", func() error {
			b, err := s.Ingest(ctx, textIngest(text))
			if err != nil {
				return err
			}
			return b.Close()
		})
	}
	step("work left by a dead process", func() error {
		w, err := s.Work(ctx, "k", "left", nil)
		if err != nil {
			return err
		}
		w.Done()
		return nil
	})
	step("name", func() error { return s.SetRef(ctx, Ref{Name: "name"}) })
	for _, sharing := range []string{SharingShared, SharingLocked, SharingPrivate} {
		step("cache mount "+sharing, func() error {
			m, err := s.CacheMounts(ctx, []CacheMountRequest{{ID: "apt", Sharing: sharing}}, nil)
			if err != nil {
				return err
			}
			return m[0].Close()
		})
	}
	step("container", func() error {
		c, err := s.NewContainer(ctx, strings.Repeat("a", 12))
		if err != nil {
			return err
		}
		return c.Close()
	})
	step("name a container", func() error { return s.NameContainer(t.Context(), "app", strings.Repeat("a", 12)) })
	step("volume", func() error {
		_, hold, _, err := s.Volume(ctx, "data", true)
		if err != nil {
			return err
		}
		return hold.Close()
	})
	step("collect", func() error { _, err := s.Collect(ctx); return err })
	step("prune", func() error { _, err := s.Prune(ctx, PruneOptions{All: true}); return err })
	step("sync", s.log.Sync)
}

// textIngest is a download of text.
func textIngest(text string) Ingest {
	return Ingest{Digest: digest.FromString(text), SizeBytes: int64(len(text)), Fetch: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text[offset:])), nil
	}}
}
