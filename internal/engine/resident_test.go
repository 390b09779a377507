package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

func (r *rig) create(req CreateRequest) string {
	r.t.Helper()
	if req.Image == "" {
		req.Image = "box"
	}
	c, err := r.Create(r.t.Context(), &req)
	if err != nil {
		r.t.Fatal(err)
	}
	return c.ID
}

func (r *rig) start(id string) {
	r.t.Helper()
	if err := r.Start(r.t.Context(), id); err != nil {
		r.t.Fatal(err)
	}
}

// ended waits until a container does not run.
func (r *rig) ended(id string) int {
	r.t.Helper()
	code, err := r.waitCode(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return code
}

func (r *rig) inspect(id string) *Container {
	r.t.Helper()
	c, err := r.Container(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func TestContainerIsCreatedStartedAndKeepsItsExitCode(t *testing.T) {
	r := newRig(t, "LABEL a=image", "EXPOSE 80")
	r.exec.program = signalled
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "/c", Args: []string{"x"}, Labels: map[string]string{"b": "own"}}, Door: []byte(`{"X":1}`)})
	c := r.inspect("c")
	if c.State.Status != "created" || c.State.Running || c.ID != id || string(c.Request.Door) != `{"X":1}` {
		t.Errorf("created: %+v", c)
	}
	if d := cmp.Diff(map[string]string{"a": "image", "b": "own"}, c.Labels); d != "" {
		t.Error(d)
	}
	if _, ok := c.Config.ExposedPorts["80/tcp"]; !ok {
		t.Errorf("ports are %v", c.Config.ExposedPorts)
	}
	next, err := r.Wait(t.Context(), id, WaitNextExit)
	if err != nil {
		t.Fatal(err)
	}
	r.start(id[:12])
	if err := r.Start(t.Context(), id); !errdefs.IsNotModified(err) {
		t.Errorf("started twice: %v", err)
	}
	if c := r.inspect(id); !c.State.Running || c.State.Pid != 1 {
		t.Errorf("running: %+v", c.State)
	}
	if err := r.Kill(t.Context(), id, "HUP"); err != nil {
		t.Fatal(err)
	}
	if w := <-next; w.Code != int(unix.SIGHUP) || w.Err != nil {
		t.Errorf("wait gives %+v", w)
	}
	if c := r.inspect(id); c.State.Status != "exited" || c.State.ExitCode != 1 || c.State.Pid != 0 {
		t.Errorf("ended: %+v", c.State)
	}
	if err := r.Kill(t.Context(), id, ""); !errdefs.IsConflict(err) {
		t.Errorf("killing what has ended: %v", err)
	}
	if err := r.Stop(t.Context(), id, StopOptions{}); !errdefs.IsNotModified(err) {
		t.Errorf("stopping what has ended: %v", err)
	}
	// It can be started again, and another process sees the same.
	r.exec.program = nil
	r.start(id)
	r.ended(id)
	other := New(r.Options)
	if s, err := other.Inspect("c"); err != nil || s.Status != "exited" || s.ExitCode != 0 {
		t.Errorf("another process sees %+v, %v", s, err)
	}
}

func TestContainersAnswerInDockersWords(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "c"}})
	for want, do := range map[string]func() error{
		"No such image: nosuch:1": func() error {
			_, err := r.Create(ctx, &CreateRequest{RunRequest: RunRequest{Image: "nosuch:1"}})
			return err
		},
		`Conflict. The container name "/c" is already in use by container "` + id: func() error {
			_, err := r.Create(ctx, &CreateRequest{RunRequest: RunRequest{Image: "box", Name: "c"}})
			return err
		},
		"can't create 'AutoRemove' container with restart policy": func() error {
			_, err := r.Create(ctx, &CreateRequest{RunRequest: RunRequest{Image: "box", Remove: true}, Restart: RestartPolicy{Name: "always"}})
			return err
		},
		"No such container: nobody": func() error { return r.Start(ctx, "nobody") },
		"is not running":            func() error { return r.Pause(ctx, "c") },
		"Renaming a container with the same name as its current name": func() error { return r.Rename(ctx, "c", "c") },
		"unable to find user nosuch": func() error {
			_, err := r.Create(ctx, &CreateRequest{RunRequest: RunRequest{Image: "box", User: "nosuch"}})
			return err
		},
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if n := len(r.names()); n != 1 {
		t.Errorf("%d containers are there", n)
	}
}

func TestProgramThatCannotBeExecutedLeavesTheContainerCreated(t *testing.T) {
	r := newRig(t)
	id := r.create(CreateRequest{})
	r.exec.fail = &sandbox.ExecError{Program: "/x", Code: 127, Err: sandbox.ErrNotInPath}
	err := r.Start(t.Context(), id)
	var exec *sandbox.ExecError
	if !errors.As(err, &exec) {
		t.Errorf("error is %v", err)
	}
	if c := r.inspect(id); c.State.Status != "created" || c.State.ExitCode != 127 || !strings.Contains(c.State.Error, "executable file not found") {
		t.Errorf("state is %+v", c.State)
	}
	r.exec.fail = nil
	r.start(id)
	r.ended(id)
}

func TestAttachedClientGetsWhatComesAndGivesInput(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		in, _ := io.ReadAll(s.request.Stdin)
		_, _ = s.request.Stdout.Write(append([]byte("out "), in...))
		_, _ = io.WriteString(s.request.Stderr, "err")
		return 0
	}
	id := r.create(CreateRequest{RunRequest: RunRequest{OpenStdin: true}, StdinOnce: true})
	for range 2 {
		a, err := r.Attach(t.Context(), id, AttachOptions{Stdin: true, Stdout: true, Stderr: true, Stream: true})
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		copied := make(chan error, 1)
		go func() { copied <- a.Copy(t.Context(), &out, &errs) }()
		typed := make(chan error, 1)
		go func() {
			_, err := io.WriteString(a.Stdin(), "hello")
			typed <- errors.Join(err, a.Stdin().Close())
		}()
		r.start(id)
		if err := errors.Join(<-typed, <-copied, a.Close()); err != nil {
			t.Fatal(err)
		}
		if out.String() != "out hello" || errs.String() != "err" {
			t.Errorf("got %q and %q", out.String(), errs.String())
		}
	}
	var out bytes.Buffer
	if err := r.copyLogs(t.Context(), id, LogOptions{Tail: -1}, &out, io.Discard); err != nil || out.String() != "out helloout hello" {
		t.Errorf("log is %q, %v", out.String(), err)
	}
}

func TestAttachedBeforeTheStartMissesNothingOfABriefProgram(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		_, _ = io.WriteString(s.request.Stdout, "brief")
		return 0
	}
	// The program has written, and its bytes are in the log, before its start is known.
	r.exec.late = func() { time.Sleep(20 * time.Millisecond) }
	id := r.create(CreateRequest{})
	a, err := r.Attach(t.Context(), id, AttachOptions{Stdout: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	r.start(id)
	var out bytes.Buffer
	if err := a.Copy(t.Context(), &out, nil); err != nil || out.String() != "brief" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestStopKillsAResidentThatDoesNotListen(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		for sig := range s.signals {
			if sig == unix.SIGKILL {
				return 137
			}
		}
		return 0
	}
	id := r.create(CreateRequest{Restart: RestartPolicy{Name: "always"}})
	r.start(id)
	zero := 0
	if err := r.Stop(t.Context(), id, StopOptions{Seconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if c := r.inspect(id); c.State.Status != "exited" || c.State.ExitCode != 137 || c.RestartCount != 0 {
		t.Errorf("state is %+v", c.State)
	}
}

func TestRemovalByForceAndByItself(t *testing.T) {
	r := newRig(t, "VOLUME /data")
	r.exec.program = signalled
	id := r.create(CreateRequest{})
	r.start(id)
	if err := r.Remove(t.Context(), id, RemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("removing what runs: %v", err)
	}
	removed, err := r.Wait(t.Context(), id, WaitRemoved)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), id, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if w := <-removed; w.Err != nil || w.Code != 9 {
		t.Errorf("wait gives %+v", w)
	}
	if v, _ := r.Store.Volumes(); len(v) != 1 {
		t.Errorf("volumes without -v: %q", v)
	}
	id = r.create(CreateRequest{RunRequest: RunRequest{Remove: true}})
	if removed, err = r.Wait(t.Context(), id, WaitRemoved); err != nil {
		t.Fatal(err)
	}
	r.start(id)
	if err := r.Kill(t.Context(), id, "KILL"); err != nil {
		t.Fatal(err)
	}
	<-removed
	if _, err := r.Container(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("after the end: %v", err)
	}
	if v, _ := r.Store.Volumes(); len(v) != 1 {
		t.Errorf("volumes are left: %q", v)
	}
}

func TestPoliciesRestart(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	runs := 0
	r.exec.program = func(*fakeSandbox) int {
		mu.Lock()
		defer mu.Unlock()
		runs++
		return 3
	}
	id := r.create(CreateRequest{Restart: RestartPolicy{Name: "on-failure", Max: 2}})
	events, err := r.Events(t.Context(), time.Time{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	r.start(id)
	dies := 0
	for ev := range events {
		if ev.Action == "die" {
			if dies++; dies == 3 {
				break
			}
		}
	}
	r.ended(id)
	mu.Lock()
	defer mu.Unlock()
	if c := r.inspect(id); runs != 3 || c.RestartCount != 2 || c.State.ExitCode != 3 || c.State.Status != "exited" {
		t.Errorf("%d runs, %+v", runs, c.State)
	}
}

func TestEventsAreReplayedAndEnd(t *testing.T) {
	r := newRig(t)
	begin := time.Now()
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "c"}})
	r.start(id)
	r.ended(id)
	if err := r.Remove(t.Context(), id, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	events, err := r.Events(t.Context(), begin, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for ev := range events {
		got = append(got, ev.Action+" "+ev.Attributes["name"])
	}
	if d := cmp.Diff([]string{"create c", "start c", "die c", "destroy c"}, got); d != "" {
		t.Error(d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	live, err := r.Events(ctx, time.Time{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	r.Emit(Event{Type: "image", Action: "pull"})
	if ev := <-live; ev.Action != "pull" || ev.Time.IsZero() {
		t.Errorf("event is %+v", ev)
	}
	cancel()
	for range live {
	}
}

func TestListenerThatFallsBehindLosesTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s events
		for range keptEvents + 10 {
			s.add(Event{Action: "x"})
		}
		if _, n, ok, _ := s.after(0); !ok || n != 10 {
			t.Errorf("the first is %d", n)
		}
	})
}
