package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// Who stops or removes a container while it starts is not told that it does not run.
func TestStopAndForcedRemovalWaitForAStartThatIsUnderWay(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "c"}})
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan error, 1)
	var stop, remove error
	r.exec.late = func() {
		stop = r.Stop(impatient, id, StopOptions{})
		remove = r.Remove(impatient, id, RemoveOptions{Force: true})
		go func() { ended <- r.Remove(t.Context(), id, RemoveOptions{Force: true}) }()
	}
	r.start(id)
	if !errors.Is(stop, context.Canceled) || !errors.Is(remove, context.Canceled) {
		t.Errorf("stop: %v; remove: %v; want both to wait", stop, remove)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := r.Container(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("the container is still there: %v", err)
	}
}

func TestNothingRunsAfterAShutdownThatComesDuringAStart(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id, other := r.create(CreateRequest{}), r.create(CreateRequest{})
	ended := make(chan error, 1)
	r.exec.late = func() {
		go func() { ended <- r.Shutdown(t.Context(), EndAll) }()
		for !r.closing() {
			time.Sleep(time.Millisecond) // a poll
		}
	}
	r.start(id)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if s := r.inspect(id).State; s.Running {
		t.Errorf("it goes on: %+v", s)
	}
	if err := r.Start(t.Context(), other); !errdefs.IsUnavailable(err) {
		t.Errorf("a start afterwards: %v", err)
	}
}

func TestRestartKeepsOnDiskThatAContainerRemovesItself(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id := r.create(CreateRequest{RunRequest: RunRequest{Remove: true}})
	r.start(id)
	if err := r.Restart(t.Context(), id, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(r.Store.ContainerPath(id), recordFile))
	if err != nil || !strings.Contains(string(b), `"remove":true`) {
		t.Errorf("%s, %v", b, err)
	}
	if err := r.Stop(t.Context(), id, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), id, RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestEventsOfARenamedContainerHaveItsNewName(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "old"}})
	r.start(id)
	if err := r.Rename(t.Context(), id, "new"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.Stop(t.Context(), id, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	events, err := r.Events(t.Context(), began, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for ev := range events {
		if ev.Type == "container" && ev.Attributes["name"] != "new" {
			t.Errorf("%s has the name %q", ev.Action, ev.Attributes["name"])
		}
	}
}

// A machine with 256 processors has counted that much after ten days.
func TestSystemCPUOfALargeMachineDoesNotOverflow(t *testing.T) {
	got, err := parseSystemCPU(strings.NewReader("cpu  100 0 50 22118400000 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"))
	if want := 221_184_001*time.Second + 500*time.Millisecond; got != want || err != nil {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// Whoever finds a volume finds what it is: a bind, or whose labels it has.
func TestVolumeIsNeverThereWithoutItsOptions(t *testing.T) {
	r := newRig(t)
	for round := range 20 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				v, err := r.CreateVolume(t.Context(), VolumeRequest{Name: fmt.Sprintf("v%d", round), Labels: map[string]string{"a": "b"}, Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
				if err != nil || v.Labels["a"] != "b" || v.Options["type"] != "tmpfs" {
					t.Errorf("%+v, %v", v, err)
				}
			})
		}
		wg.Wait()
	}
}

func TestWhatADeadDenHadTakenOutOfASandboxGoesWithIt(t *testing.T) {
	r := newRig(t)
	id := r.create(CreateRequest{})
	l, err := r.life(id)
	if err == nil {
		err = l.update(func(rec *record) { rec.State = stateRunning })
	}
	look := filepath.Join(r.Store.ContainerPath(id), "look-1", "image.erofs")
	if err := errors.Join(err, os.MkdirAll(look, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(look)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// Who sees that a container has ended can remove it, though its end is still being accounted for.
func TestRemovalWaitsForTheAccountOfAnEnd(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id := r.create(CreateRequest{})
	r.start(id)
	l := r.known(id)
	state := func(s state) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.record.State = s
	}
	if err := l.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	state(stateExited)
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Remove(impatient, id, RemoveOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not wait: %v", err)
	}
	state(stateRunning)
	l.unlock()
	if err := r.Remove(t.Context(), id, RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
}
