package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/durable"
)

// quick is a pulse for tests: dead after a third of a second. Those who are to see a heart
// beat are patient: it may have to wait for a processor.
var (
	quick   = pulse{every: 5 * time.Millisecond, watch: 300 * time.Millisecond}
	patient = pulse{every: quick.every, watch: time.Minute}
)

// foreignHost beats as another kernel does that uses the store.
func foreignHost(t *testing.T, root string, every time.Duration) (path string) {
	t.Helper()
	path = filepath.Join(root, hostsFolder, "11111111-another-kernel")
	must(t, writeBeat(path))
	f, err := os.Open(path)
	must(t, err)
	h := &heart{f, make(chan struct{}), make(chan struct{})}
	go h.run(every)
	t.Cleanup(func() { must(t, h.end()) })
	return path
}

func openQuick(ctx context.Context, root, engineDir string) (*Store, error) {
	return openPulsed(ctx, root, engineDir, quick)
}

func openPulsed(ctx context.Context, root, engineDir string, p pulse) (*Store, error) {
	return Open(ctx, root, Options{EngineDir: engineDir, Durability: durable.None, pulse: p})
}

func TestStoreThatAnotherKernelUsesIsRefused(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	s, err := openQuick(t.Context(), root, t.TempDir())
	must(t, err)
	must(t, s.Close())
	foreign := foreignHost(t, root, quick.every)
	s, err = openPulsed(t.Context(), root, t.TempDir(), patient)
	if err == nil {
		must(t, s.Close())
		t.Fatal("opened beside another kernel")
	}
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "another machine") || !strings.Contains(err.Error(), "set DEN_STORE") {
		t.Errorf("got %v", err)
	}
	left, err := readNames(filepath.Join(root, hostsFolder))
	must(t, err)
	if len(left) != 1 || left[0] != filepath.Base(foreign) {
		t.Errorf("heartbeats left: %v", left)
	}
}

// Recovery would take what the other kernel is writing for torn.
func TestRefusedKernelDoesNotRecover(t *testing.T) {
	s := tempStore(t)
	putBlob(t, s, "not synced")
	boots, err := readNames(s.path("sync"))
	must(t, err)
	foreign := "22222222-another-kernel"
	must(t, os.Rename(s.path("sync", boots[0]), s.path("sync", foreign)))
	foreignHost(t, s.Root(), quick.every)
	if _, err := openPulsed(t.Context(), s.Root(), t.TempDir(), patient); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("got %v", err)
	}
	if !exists(s.path("sync", foreign)) {
		t.Error("the epochs of a living kernel are gone")
	}
	must(t, os.Rename(s.path("sync", foreign), s.path("sync", boots[0])))
}

func TestHeartbeatThatStandsStillIsDead(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	s, err := openQuick(t.Context(), root, t.TempDir())
	must(t, err)
	must(t, s.Close())
	foreign := foreignHost(t, root, time.Hour)
	s, err = openQuick(t.Context(), root, t.TempDir())
	must(t, err)
	if exists(foreign) {
		t.Error("a dead kernel's heartbeat is kept, and the next process waits again")
	}
	must(t, s.Close())
}

func TestLastProcessTakesTheHeartbeatWithIt(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	first, err := openQuick(t.Context(), root, t.TempDir())
	must(t, err)
	second, err := openQuick(t.Context(), root, t.TempDir())
	must(t, err)
	mine := first.path(hostsFolder, first.boot)
	must(t, first.Close())
	if !exists(mine) {
		t.Error("no heartbeat while a process uses the store")
	}
	must(t, second.Close())
	if exists(mine) {
		t.Error("a heartbeat without a process")
	}
}

func TestHeartbeatGoesOn(t *testing.T) {
	s, err := openQuick(t.Context(), filepath.Join(t.TempDir(), "store"), t.TempDir())
	must(t, err)
	defer s.Close()
	before, err := os.ReadFile(s.path(hostsFolder, s.boot))
	must(t, err)
	for {
		now, err := os.ReadFile(s.path(hostsFolder, s.boot))
		must(t, err)
		if string(now) != string(before) {
			return // the test's time limit ends a heart that does not beat
		}
		time.Sleep(time.Millisecond)
	}
}

func TestBaseThatAnotherKernelUsesIsRefused(t *testing.T) {
	base := tempStore(t)
	foreignHost(t, base.Root(), quick.every)
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "store"), Options{EngineDir: t.TempDir(), Bases: []string{base.Root()}, pulse: patient})
	if err == nil {
		must(t, s.Close())
	}
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), base.Root()) {
		t.Errorf("got %v", err)
	}
}
