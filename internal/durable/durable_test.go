package durable

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

func openLog(t testing.TB, dir, boot string, mode Mode) *Log {
	t.Helper()
	l, err := Open(dir, boot, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func publish(t testing.TB, l *Log, object string) {
	t.Helper()
	if err := l.Publish(object, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
}

func suspects(t *testing.T, dir string) []string {
	t.Helper()
	got, err := Suspects(dir, "after")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestPublishedObjectIsSuspectAfterReboot(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", Epoch)
	publish(t, l, "blobs/sha256/b")
	publish(t, l, "blobs/sha256/a")
	publish(t, l, "blobs/sha256/a")
	if diff := cmp.Diff([]string{"blobs/sha256/a", "blobs/sha256/b"}, suspects(t, dir)); diff != "" {
		t.Error(diff)
	}
	if own, _ := Suspects(dir, "before"); own != nil {
		t.Errorf("suspects of the running kernel: %v", own)
	}
}

func TestSyncedObjectIsNotSuspect(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", Epoch)
	publish(t, l, "old")
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	publish(t, l, "new")
	if diff := cmp.Diff([]string{"new"}, suspects(t, dir)); diff != "" {
		t.Error(diff)
	}
}

// waitSyncer returns when a detached syncer that was started has ended.
func waitSyncer(t *testing.T, l *Log) {
	t.Helper()
	for _, name := range []string{queued, syncing} {
		f, err := openLock(l.dir.Name(), name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := sys.Flock(f, unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDetachedSyncerRetiresTheEpoch(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", Epoch)
	publish(t, l, "a")
	if err := os.Mkdir(filepath.Join(l.dir.Name(), oldPrefix+"x"), 0o755); err != nil {
		t.Fatal(err) // what a killed syncer leaves
	}
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	waitSyncer(t, l)
	if got := suspects(t, dir); got != nil {
		t.Errorf("suspects after the sync: %v", got)
	}
	epochs, err := l.list()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{current: {}}, epochs); diff != "" {
		t.Errorf("left over: %s", diff)
	}
}

// Who is killed leaves no syncer behind, so that an epoch would grow without end
// where every process is.
func TestEpochOfKilledProcessesIsClosedByTheNextThatPublishes(t *testing.T) {
	dir := t.TempDir()
	killed := openLog(t, dir, "before", Epoch)
	publish(t, killed, "old")
	next := openLog(t, dir, "before", Epoch)
	if began, ok := begun(filepath.Join(dir, "before", current)); !ok || !next.lastSync.Equal(began) {
		t.Skipf("needs a file system with times of birth: %v, %v", began, ok)
	}
	next.lastSync = next.lastSync.Add(-syncEvery)
	publish(t, next, "new")
	if err := next.DetachIfDue(); err != nil {
		t.Fatal(err)
	}
	waitSyncer(t, next)
	if got := suspects(t, dir); len(got) > 0 {
		t.Errorf("still suspect: %q", got)
	}
	if fresh := openLog(t, dir, "before", Epoch); time.Since(fresh.lastSync) > syncEvery {
		t.Errorf("an epoch without publications is as old as %v", fresh.lastSync)
	}
}

// The end of process 1 would kill the syncer, and wait until it can be killed.
func TestProcess1LeavesItsEpochToTheNextThatPublishes(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", Epoch)
	publish(t, l, "a")
	if err := l.Leave(1); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(l.dir.Name(), queued)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process 1 started a syncer: %v", err)
	}
	next := openLog(t, dir, "before", Epoch)
	publish(t, next, "b")
	if err := next.Leave(2); err != nil {
		t.Fatal(err)
	}
	waitSyncer(t, next)
	if got := suspects(t, dir); got != nil {
		t.Errorf("suspects after the next process's sync: %v", got)
	}
	if err := openLog(t, t.TempDir(), "before", Strict).Leave(1); err != nil {
		t.Errorf("in strict mode: %v", err)
	}
}

// Without times of birth, as on NFS, the next one would not know that there is something to sync.
func TestProcess1SyncsWhereEpochsHaveNoAge(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("ramfs", dir, "ramfs", 0, ""); err != nil {
		t.Skipf("needs a mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	l := openLog(t, dir, "before", Epoch)
	publish(t, l, "a")
	if birth, _, ok := times(filepath.Join(dir, "before", current)); ok {
		t.Fatalf("ramfs has times of birth: %v", birth)
	}
	if err := l.Leave(1); err != nil {
		t.Fatal(err)
	}
	waitSyncer(t, l)
	if got := suspects(t, dir); got != nil {
		t.Errorf("suspects after the sync: %v", got)
	}
}

func TestProcessThatPublishedNothingStartsNoSyncer(t *testing.T) {
	l := openLog(t, t.TempDir(), "before", Epoch)
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(l.dir.Name(), queued)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a syncer was started: %v", err)
	}
}

func TestPublisherSurvivesASyncerThatDiedBetweenEpochs(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", Epoch)
	if err := os.Rename(filepath.Join(l.dir.Name(), current), filepath.Join(l.dir.Name(), oldPrefix+"x")); err != nil {
		t.Fatal(err)
	}
	publish(t, l, "a")
	if diff := cmp.Diff([]string{"a"}, suspects(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestConcurrentPublishersShareTheLock(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", Epoch)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				publish(t, l, string(rune('a'+i))+string(rune('a'+j)))
			}
		})
	}
	for range 5 {
		if err := l.Sync(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := suspects(t, dir); got != nil {
		t.Errorf("suspects after the last sync: %v", got)
	}
}

func TestAcquitForgetsDeadKernelsOnly(t *testing.T) {
	dir := t.TempDir()
	publish(t, openLog(t, dir, "before", Epoch), "a")
	openLog(t, dir, "after", Epoch)
	if err := Acquit(dir, "after"); err != nil {
		t.Fatal(err)
	}
	if got := suspects(t, dir); got != nil {
		t.Errorf("suspects: %v", got)
	}
	if ok, err := Clean(dir, "after"); !ok || err != nil {
		t.Errorf("clean: %v, %v", ok, err)
	}
}

func TestHostileMarkersAreIgnored(t *testing.T) {
	dir := t.TempDir()
	now := filepath.Join(dir, "before", current)
	if err := os.MkdirAll(now, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"..%..%etc%passwd", "%etc%passwd", "a%%b", "ok"} {
		if err := os.WriteFile(filepath.Join(now, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"ok"}, suspects(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestModeNoneTouchesNothing(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "before", None)
	publish(t, l, "a")
	if err := errors.Join(l.Sync(), l.Detach()); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("wrote %v", entries)
	}
}

func TestWriteFileReplacesWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two"} {
		if err := WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(path); string(got) != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
}

func BenchmarkPublishMark(b *testing.B) {
	l := openLog(b, b.TempDir(), "boot", Epoch)
	for b.Loop() {
		if err := l.Publish("blobs/sha256/0123", func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
