package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/durable"
	"den/internal/image"
	"den/internal/sandbox"
	"den/internal/snapshot"
	"den/internal/store"
	"den/internal/store/storetest"
)

// A lastingExecutor has programs that are files: they outlive this process, and end when
// somebody writes how.
type lastingExecutor struct{}

const (
	lastingStarted = "started"
	lastingExit    = "exit"
)

func (lastingExecutor) Name() string { return "lasting" }

func (lastingExecutor) Start(_ context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	if r.Stdout != nil {
		if _, err := io.WriteString(r.Stdout, "output\n"); err != nil {
			return nil, err
		}
	}
	return lastingSandbox(r.Detach), os.WriteFile(filepath.Join(r.Detach, lastingStarted), nil, 0o600)
}

func (lastingExecutor) Adopt(_ context.Context, _, dir string) (sandbox.Sandbox, error) {
	_, err := os.Stat(filepath.Join(dir, lastingStarted))
	return lastingSandbox(dir), err
}

type lastingSandbox string

func (lastingSandbox) Pid() int                    { return 1 }
func (lastingSandbox) Resize(uint16, uint16) error { return nil }
func (s lastingSandbox) Signal(sig unix.Signal) error {
	f, err := os.OpenFile(filepath.Join(string(s), lastingExit), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return os.ErrProcessDone
	}
	_, err = fmt.Fprintln(f, int(sig))
	return errors.Join(err, f.Close())
}

func (s lastingSandbox) Wait(ctx context.Context) (sandbox.Exit, error) {
	for ctx.Err() == nil {
		b, err := os.ReadFile(filepath.Join(string(s), lastingExit))
		if code, aerr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && aerr == nil {
			return sandbox.Exit{Code: code}, nil
		}
		time.Sleep(time.Millisecond)
	}
	return sandbox.Exit{}, ctx.Err()
}

// crashRig is an engine on a store that another process may have died on.
func crashRig(t *testing.T, root string, executor sandbox.Executor) *rig {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(root, "store"), store.Options{
		EngineDir: filepath.Join(root, "engine"), Image: storetest.Images(), Durability: durable.None,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	images := image.New(st, nil, image.Options{})
	if _, err := images.Import(t.Context(), rootfs(t), image.ImportOptions{Name: "box", Changes: []string{`CMD ["/bin/default"]`, "VOLUME /data"}}); err != nil {
		t.Fatal(err)
	}
	return &rig{New(Options{Store: st, Images: images, Exec: executor, Driver: snapshot.Drivers()[0], Log: func(err error) { t.Log(err) }}), nil, t}
}

// TestLifeThatIsKilled is the process that TestWhoeverDiesTheNextDenGoesOn kills.
func TestLifeThatIsKilled(t *testing.T) {
	root := os.Getenv("DEN_TEST_LIFE")
	if root == "" {
		t.Skip("needs a parent: this is the other half of TestWhoeverDiesTheNextDenGoesOn")
	}
	r := crashRig(t, root, lastingExecutor{})
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "c", Remove: os.Getenv("DEN_TEST_REMOVE") != ""}})
	removed, err := r.Wait(t.Context(), id, WaitRemoved)
	if err != nil {
		t.Fatal(err)
	}
	r.start(id)
	if err := r.Kill(t.Context(), id, "USR1"); err != nil {
		t.Fatal(err)
	}
	r.ended(id)
	if os.Getenv("DEN_TEST_REMOVE") != "" {
		<-removed
	} else if err := r.Remove(t.Context(), id, RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
}

func TestWhoeverDiesTheNextDenGoesOn(t *testing.T) {
	const usr1 = int(unix.SIGUSR1)
	for point, want := range map[string]struct {
		state, output string // of a container that stays; empty: there is none
		code          int
	}{
		"engine.create.roots":     {},
		"engine.create.record":    {},
		"engine.start.start":      {state: "created"},
		"engine.start.started":    {state: "running", output: "output\n"},
		"engine.end.record":       {state: "exited", output: "output\n", code: usr1},
		"engine.end.recorded":     {state: "exited", output: "output\n", code: usr1},
		"engine.remove.dir":       {state: "exited", output: "output\n", code: usr1},
		"engine.volume.filled":    {state: "created"},
		"store.container.rename":  {},
		"store.container.discard": {},
	} {
		for _, remove := range []string{"", "1"} {
			t.Run(point+remove, func(t *testing.T) {
				t.Parallel()
				root := t.TempDir()
				killAt(t, root, point, "DEN_TEST_REMOVE="+remove)
				r := crashRig(t, root, lastingExecutor{})
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan error, 1)
				r.Begin(t.Context())
				go func() { over <- r.Supervise(ctx) }()
				defer func() {
					cancel()
					if err := <-over; err != nil {
						t.Error(err)
					}
				}()
				r.goesOn(want.state, want.output, want.code, remove != "")
				rep, err := r.Store.Verify(t.Context(), true)
				if err != nil || len(rep.Problems)+len(rep.Dangling) > 0 {
					t.Errorf("verify: %+v, %v", rep, err)
				}
			})
		}
	}
}

func killAt(t *testing.T, root, point string, env ...string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLifeThatIsKilled$")
	cmd.Env = append(os.Environ(), append(env, "DEN_TEST_LIFE="+root, "DEN_FAILPOINTS="+point+"=kill", "TMPDIR="+t.TempDir())...)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
}

// goesOn checks what the next den finds, and that it can do with it what it likes.
func (r *rig) goesOn(state, output string, code int, remove bool) {
	t := r.t
	t.Helper()
	if list, err := r.Containers(t.Context()); err != nil || len(list) > 1 || state == "" && len(list) > 0 {
		t.Fatalf("there are %+v, %v", list, err)
	} else if len(list) > 0 {
		r.found(list[0], state, output, code, remove)
	} else if state != "" && !(state == "exited" && remove) {
		t.Error("there is none")
	}
	// The name is free, and nothing is left.
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "c"}})
	r.start(id)
	if err := r.Remove(t.Context(), id, RemoveOptions{Force: true, Volumes: true}); err != nil {
		t.Error(err)
	}
	if v, err := r.Store.Volumes(); len(v) > 0 || err != nil {
		t.Errorf("volumes are left: %q, %v", v, err)
	}
	if ids, err := r.Store.Containers(); len(ids) > 0 || err != nil {
		t.Errorf("containers are left: %q, %v", ids, err)
	}
}

// found checks the container that is there.
func (r *rig) found(c *Container, state, output string, code int, remove bool) {
	t := r.t
	t.Helper()
	switch {
	case state == "exited" && remove: // it removes itself
		if removed, err := r.Wait(t.Context(), c.ID, WaitRemoved); err == nil {
			<-removed
		}
		return
	case state == "exited":
		if got := r.ended(c.ID); got != code {
			t.Errorf("it ended with %d, want %d", got, code)
		}
		var out strings.Builder
		err := r.copyLogs(t.Context(), c.ID, LogOptions{Tail: -1}, &out, io.Discard)
		if d := cmp.Diff(output, out.String()); d != "" || err != nil {
			t.Error(d, err)
		}
	case c.State.Status != state:
		t.Errorf("it is %+v, want %s", c.State, state)
	}
	if err := r.Remove(t.Context(), c.ID, RemoveOptions{Force: true, Volumes: true}); err != nil {
		t.Error(err)
	}
}

func TestContainerThatDiedWithItsDenHasExitCode137AndStartsAgain(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	ids := map[string]string{}
	for _, policy := range []string{"no", "always", "unless-stopped", "on-failure"} {
		ids[policy] = r.create(CreateRequest{Restart: RestartPolicy{Name: policy}})
		dir, err := r.Store.OpenContainer(ids[policy])
		if err != nil {
			t.Fatal(err)
		}
		rec, err := readRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		rec.State, rec.Started = stateRunning, time.Now() // and then its den was killed
		if err := errors.Join(rec.write(dir.Path()), dir.Close()); err != nil {
			t.Fatal(err)
		}
	}
	next := &rig{New(r.Options), r.exec, t}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	next.Begin(t.Context())
	go func() { over <- next.Supervise(ctx) }()
	if c := next.inspect(ids["no"]); c.State.Status != "exited" || c.State.ExitCode != 137 {
		t.Errorf("without a policy: %+v", c.State)
	}
	for _, policy := range []string{"always", "unless-stopped", "on-failure"} {
		events, err := next.Events(ctx, time.Unix(0, 0), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		for ev := range events {
			if ev.Action == "start" && ev.ID == ids[policy] {
				break
			}
		}
		if err := next.Kill(ctx, ids[policy], ""); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := next.Shutdown(t.Context(), EndAll); err != nil {
		t.Error(err)
	}
}
