package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

const mebi = 1 << 20

// cappedStore opens the store in root, or a new one, with a cap.
func cappedStore(t testing.TB, root string, capBytes int64) *Store {
	t.Helper()
	if root == "" {
		root = filepath.Join(t.TempDir(), "store")
	}
	s, err := Open(t.Context(), root, Options{EngineDir: t.TempDir(), MaxBytes: capBytes})
	must(t, err)
	s.patience = 100 * time.Millisecond
	t.Cleanup(func() { must(t, errors.Join(s.log.Sync(), s.Close())) })
	return s
}

// bigBlob puts n bytes that begin with name.
func bigBlob(ctx context.Context, s *Store, name string, n int) (*Blob, error) {
	data := bytes.Repeat([]byte(name), n/len(name)+1)[:n]
	return s.PutBlob(ctx, bytes.NewReader(data))
}

// cachedBlob puts a blob that only a record used age ago keeps.
func cachedBlob(t *testing.T, s *Store, name string, n int, age, cost time.Duration) oci.Digest {
	t.Helper()
	b, err := bigBlob(t.Context(), s, name, n)
	must(t, err)
	putAgedRecord(t, s, name, age, Record{Blobs: []oci.Digest{b.Digest()}, CostNanos: int64(cost)})
	must(t, b.Close())
	return b.Digest()
}

func usedBytes(t *testing.T, s *Store) int64 {
	t.Helper()
	used, _, err := s.measure(t.Context())
	must(t, err)
	return used
}

func TestWriteOverTheCapEvictsLeastRecentlyUsed(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	old := cachedBlob(t, s, "old", 4*mebi, 3*time.Hour, 0)
	young := cachedBlob(t, s, "young", 4*mebi, time.Minute, 0)
	b, err := bigBlob(t.Context(), s, "new", 4*mebi)
	must(t, err)
	defer b.Close()
	if hasBlob(t, s, old) || !hasBlob(t, s, young) {
		t.Error("want the old blob gone and the young one there")
	}
	if used := usedBytes(t, s); used > 10*mebi {
		t.Errorf("store takes %d", used)
	}
}

func TestWhatIsCheapToRebuildGoesFirst(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	dear := cachedBlob(t, s, "dear", 4*mebi, 3*time.Hour, 20*time.Minute)
	cheap := cachedBlob(t, s, "cheap", 4*mebi, time.Hour, time.Second)
	b, err := bigBlob(t.Context(), s, "new", 4*mebi)
	must(t, err)
	defer b.Close()
	if hasBlob(t, s, cheap) || !hasBlob(t, s, dear) {
		t.Error("want the cheap blob gone and the dear one there")
	}
}

func TestMorePinnedThanTheCapIsAClearError(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	b, err := bigBlob(t.Context(), s, "pinned", 8*mebi)
	must(t, err)
	defer b.Close()
	must(t, s.SetRef(t.Context(), Ref{Name: "app", Record: Record{Blobs: []oci.Digest{b.Digest()}}}))
	_, err = bigBlob(t.Context(), s, "new", 8*mebi)
	if !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "--max-size") {
		t.Fatalf("got %v", err)
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

func TestReservationOfAnotherProcessCounts(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	other := cappedStore(t, s.Root(), 10*mebi)
	r, err := other.Reserve(t.Context(), 8*mebi)
	must(t, err)
	if _, err := s.Reserve(t.Context(), 4*mebi); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v, want no room", err)
	}
	must(t, r.Close())
	again, err := s.Reserve(t.Context(), 4*mebi)
	must(t, err)
	must(t, again.Close())
}

func TestReservationWaitsForOthersToFinish(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	s.patience = time.Minute
	r, err := s.Reserve(t.Context(), 8*mebi)
	must(t, err)
	got := make(chan error)
	go func() {
		second, err := s.Reserve(t.Context(), 8*mebi)
		got <- errors.Join(err, second.Close())
	}()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	must(t, r.Close())
	must(t, <-got)
}

func TestPulledReferencesGoUnderPressureOnly(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	b, err := bigBlob(t.Context(), s, "pulled", 6*mebi)
	must(t, err)
	must(t, s.SetPulledRef(t.Context(), Ref{Name: "debian", Record: Record{Blobs: []oci.Digest{b.Digest()}}}))
	must(t, b.Close())
	_, err = s.Prune(t.Context(), PruneOptions{All: true})
	must(t, err)
	if !hasBlob(t, s, b.Digest()) {
		t.Fatal("a prune took a pulled image")
	}
	fresh, err := bigBlob(t.Context(), s, "new", 8*mebi)
	must(t, err)
	defer fresh.Close()
	if hasBlob(t, s, b.Digest()) {
		t.Error("the pulled image is still there")
	}
}

func TestWatcherStopsWhoWritesTooMuch(t *testing.T) {
	s := cappedStore(t, "", 16*mebi)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	w, err := s.Watch(t.Context(), d.FS())
	must(t, err)
	ctx := w.Context()
	f, err := os.Create(filepath.Join(d.FS(), "big"))
	must(t, err)
	defer f.Close()
	page := bytes.Repeat([]byte("x"), 256<<10)
	for i := 0; ctx.Err() == nil; i++ {
		if i > 4*30 { // 30 MiB; from then on only wait
			<-ctx.Done()
			break
		}
		_, err := f.Write(page)
		must(t, err)
	}
	if err := context.Cause(ctx); !errdefs.IsResourceExhausted(err) {
		t.Errorf("cause: %v", err)
	}
	if err := w.Stop(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("stop: %v", err)
	}
}

func TestStoreWithoutBudgetReservesNothing(t *testing.T) {
	s := tempStore(t)
	r, err := s.Reserve(t.Context(), 1<<50)
	must(t, err)
	must(t, r.Ensure(t.Context(), 1<<50))
	must(t, r.Close())
	if exists(s.path("lock", ledgerFile)) {
		t.Error("a store without a cap keeps a ledger")
	}
}

func TestReservationOfTheDeadIsReaped(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	must(t, os.WriteFile(s.path(reserveFolder, "dead"), []byte("\x00\x00\x00\x10\x00\x00\x00\x00"), 0o644))
	r, err := s.Reserve(t.Context(), 9*mebi)
	must(t, err)
	must(t, r.Close())
	collect(t, s)
	if names, err := readNames(s.path(reserveFolder)); len(names) > 0 || err != nil {
		t.Errorf("left over: %v %v", names, err)
	}
}

func TestSoftBudgetEvictsAndRefusesNothing(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	s.budget.soft = true
	old := cachedBlob(t, s, "old", 4*mebi, time.Hour, 0)
	pinned, err := bigBlob(t.Context(), s, "pinned", 8*mebi)
	must(t, err)
	defer pinned.Close()
	if hasBlob(t, s, old) {
		t.Error("the cache is still there")
	}
	more, err := bigBlob(t.Context(), s, "more", 8*mebi)
	must(t, err)
	must(t, more.Close())
}

// A program beside a soft budget is not held, and needs no guard: it may write what it wants.
func TestWatchOfSoftBudgetMakesRoomAndHoldsNobody(t *testing.T) {
	s := cappedStore(t, "", 16*mebi)
	s.budget.soft = true
	old := cachedBlob(t, s, "old", 8*mebi, time.Hour, 0)
	d, err := s.NewDraft(t.Context())
	must(t, err)
	defer d.Close()
	w, err := s.Watch(t.Context(), d.FS())
	must(t, err)
	w.SetBrake(holdsNobody{t})
	if w.brake.can() {
		t.Error("the watch has a brake")
	}
	must(t, os.WriteFile(filepath.Join(d.FS(), "big"), bytes.Repeat([]byte("x"), 32*mebi), 0o644))
	must(t, w.Stop())
	if hasBlob(t, s, old) {
		t.Error("the cache is still there")
	}
}

type holdsNobody struct{ t *testing.T }

func (h holdsNobody) Freeze() { h.t.Error("held") }
func (h holdsNobody) Thaw()   {}

func TestMinFreeRefusesWhatTheDiskHasNot(t *testing.T) {
	s := cappedStore(t, "", 0)
	s.budget.minFreeBytes = 1 << 60
	if _, err := s.Reserve(t.Context(), 1); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "--min-free") {
		t.Errorf("got %v", err)
	}
}

func TestExitCollectsWhatIsOverTheCap(t *testing.T) {
	s := cappedStore(t, "", 10*mebi)
	old := cachedBlob(t, s, "old", 6*mebi, time.Hour, 0)
	loose := openStore(t, s.Root(), t.TempDir()) // without a cap
	cachedBlob(t, loose, "new", 6*mebi, 0, 0)
	// As if nobody else had freed anything on this disk meanwhile.
	must(t, s.withLedger(t.Context(), func(l *ledger) error { l.FSUsedBytes = 0; return nil }))
	must(t, s.collectAtExit(t.Context()))
	if hasBlob(t, s, old) {
		t.Error("over the cap after the end")
	}
}

// tmpfsStore opens a store on a tmpfs of its own.
func tmpfsStore(t *testing.T, size string) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("needs mounts: ", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return openStore(t, filepath.Join(dir, "store"), t.TempDir())
}

func TestFullDiskGivesUpCacheAndTriesAgain(t *testing.T) {
	s := tmpfsStore(t, "10m")
	old := cachedBlob(t, s, "old", 6*mebi, time.Hour, 0)
	b, err := bigBlob(t.Context(), s, "new", 8*mebi)
	must(t, err)
	must(t, b.Close())
	if hasBlob(t, s, old) {
		t.Error("the cache is still there")
	}
	mustBeSound(t, s)
}

// Who cannot open a full store cannot make room in it.
func TestFullDiskCanBeOpenedAndPruned(t *testing.T) {
	s := tmpfsStore(t, "10m")
	cachedBlob(t, s, "old", 6*mebi, time.Hour, 0)
	root := s.Root()
	must(t, s.Close())
	f, err := os.Create(filepath.Join(filepath.Dir(root), "other"))
	must(t, err)
	for _, n := range []int{1 << 16, 1} {
		for err = nil; err == nil; _, err = f.Write(make([]byte, n)) {
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	must(t, f.Close())
	full := openStore(t, root, t.TempDir())
	if freed, err := full.Prune(t.Context(), PruneOptions{All: true}); err != nil || freed < 6*mebi {
		t.Errorf("freed %d bytes: %v", freed, err)
	}
	mustBeSound(t, full)
}

func TestFullDiskWithNothingToGiveUpIsAnError(t *testing.T) {
	s := tmpfsStore(t, "10m")
	b, err := bigBlob(t.Context(), s, "held", 6*mebi)
	must(t, err)
	defer b.Close()
	if _, err := bigBlob(t.Context(), s, "new", 8*mebi); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if r := mustBeSound(t, s); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}
