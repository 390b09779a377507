package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

func TestRenameAndUpdate(t *testing.T) {
	r := newRig(t)
	id := r.create(CreateRequest{RunRequest: RunRequest{Name: "old"}})
	if err := r.Rename(t.Context(), "old", "/new"); err != nil {
		t.Fatal(err)
	}
	if c := r.inspect("new"); c.ID != id || c.Name != "new" {
		t.Errorf("it is %+v", c)
	}
	if _, err := r.Container(t.Context(), "old"); !errdefs.IsNotFound(err) {
		t.Errorf("the old name: %v", err)
	}
	if _, err := r.Update(t.Context(), id, &UpdateRequest{Restart: &RestartPolicy{Name: "always"}, Limits: &Limits{Pids: 7}}); err != nil {
		t.Fatal(err)
	}
	again := New(r.Options)
	again.serve()
	c, err := again.Container(t.Context(), id)
	if err != nil || c.Request.Restart.Name != "always" || c.Request.Limits.Pids != 7 {
		t.Errorf("another process sees %+v, %v", c, err)
	}
}

func TestUpdateOfLimitsIsInForceAtOnce(t *testing.T) {
	r := newRig(t)
	running := make(chan *fakeSandbox, 1)
	r.exec.program = func(s *fakeSandbox) int { running <- s; return signalled(s) }
	id := r.create(CreateRequest{})
	r.start(id)
	sb := <-running
	set := func(l Limits, want string) {
		t.Helper()
		warnings, err := r.Update(t.Context(), id, &UpdateRequest{Limits: &l})
		if err != nil || strings.Join(warnings, "|") != want {
			t.Errorf("warnings are %q, %v", warnings, err)
		}
	}
	set(Limits{MemoryBytes: 64 << 20, Pids: 7}, "")
	set(Limits{MemoryBytes: 64 << 20, Pids: 7}, "") // nothing new
	if len(sb.limits) != 1 || *sb.limits[0].Memory.Limit != 64<<20 || *sb.limits[0].Pids.Limit != 7 {
		t.Errorf("limits in force are %+v", sb.limits)
	}
	sb.unlimited = errdefs.ErrUnavailable.WithMessage("there are no cgroups")
	set(Limits{Pids: 8}, "there are no cgroups")
	sb.unlimited = errors.New("device or resource busy")
	if _, err := r.Update(t.Context(), id, &UpdateRequest{Limits: &Limits{Pids: 9}}); err == nil {
		t.Error("a limit that was not set was promised")
	}
	if c := r.inspect(id); c.Request.Limits.Pids != 8 {
		t.Errorf("kept are %+v", c.Request.Limits)
	}
	if err := r.Kill(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
}

func TestLivesLeaveNoDescriptorsAndNoGoroutines(t *testing.T) {
	r := newRig(t, "VOLUME /data")
	live := func() {
		id := r.create(CreateRequest{RunRequest: RunRequest{Remove: true, OpenStdin: true}})
		removed, err := r.Wait(t.Context(), id, WaitRemoved)
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.Attach(t.Context(), id, AttachOptions{Stdout: true, Stream: true})
		if err != nil {
			t.Fatal(err)
		}
		r.start(id)
		if err := errors.Join(a.Copy(t.Context(), io.Discard, io.Discard), a.Close()); err != nil {
			t.Fatal(err)
		}
		<-removed
		r.residents.wg.Wait()
	}
	live()
	fds, routines := descriptors(t), runtime.NumGoroutine()
	for range 5 {
		live()
	}
	// What was removed is deleted a moment later.
	after := descriptors(t)
	for deadline := time.Now().Add(10 * time.Second); after > fds && time.Now().Before(deadline); after = descriptors(t) {
		runtime.Gosched()
	}
	if after > fds { // not counted again: the deleting opens others
		t.Errorf("%d descriptors, before %d", after, fds)
	}
	// A goroutine that has done its last may not be gone yet.
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > routines && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > routines {
		t.Errorf("%d goroutines, before %d", after, routines)
	}
	if n := len(r.residents.lives) + len(r.execs.all); n > 0 {
		t.Errorf("%d containers and programs are remembered", n)
	}
}

func TestFilesGoIntoAndComeOutOfAContainerThatDoesNotRun(t *testing.T) {
	r := newRig(t, "VOLUME /volume")
	ctx := t.Context()
	id := r.create(CreateRequest{})
	for _, dir := range []string{"/data", "/volume"} {
		var in bytes.Buffer
		w := tar.NewWriter(&in)
		for _, f := range []struct{ name, text string }{{"sub/new", "new"}, {"seed", "other"}} {
			if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o600, Size: int64(len(f.text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, f.text); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), r.WriteArchive(ctx, id, dir, &in, sandbox.WriteTarOptions{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())})); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"/sub/new": "new", "/seed": "other"} {
			out, stat, err := r.ReadArchive(ctx, id, dir+name)
			if err != nil {
				t.Fatal(err)
			}
			tr := tar.NewReader(out)
			h, err := tr.Next()
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(tr)
			if err := errors.Join(err, out.Close()); err != nil {
				t.Fatal(err)
			}
			if string(text) != want || h.Name != stat.Name || stat.Size != int64(len(want)) {
				t.Errorf("%s%s: %q as %s, %+v", dir, name, text, h.Name, stat)
			}
		}
	}
	changes, err := r.Changes(ctx, id)
	if d := cmp.Diff([]Change{
		{"/data", ChangeModified}, {"/data/seed", ChangeModified}, {"/data/sub", ChangeModified}, {"/data/sub/new", ChangeAdded},
	}, changes); d != "" || err != nil {
		t.Error(d, err)
	}
	for _, dir := range []string{"/data", "/volume"} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: "../out", Mode: 0o600}), w.Close()); err != nil {
			t.Fatal(err)
		}
		if err := r.WriteArchive(ctx, id, dir, &out, sandbox.WriteTarOptions{}); err == nil || !strings.Contains(err.Error(), "leads out of the directory") {
			t.Errorf("out of %s: %v", dir, err)
		}
	}
	if _, err := r.StatPath(ctx, id, "/nowhere"); !errdefs.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
	if err := r.WriteArchive(ctx, id, "/data/seed", strings.NewReader(""), sandbox.WriteTarOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("into a file: %v", err)
	}
	img, err := r.Commit(ctx, id, CommitOptions{Name: "made:1", Changes: []string{"ENV A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.Parse()
	if err != nil || len(config.RootFS.DiffIDs) != 2 || !strings.Contains(strings.Join(config.Config.Env, " "), "A=b") {
		t.Errorf("image is %+v, %v", config, err)
	}
	var all bytes.Buffer
	if err := r.Export(ctx, r.create(CreateRequest{RunRequest: RunRequest{Image: "made:1"}}), &all); err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(&all); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); !strings.Contains(got, "data/sub/new") || !strings.Contains(got, "etc/passwd") {
		t.Errorf("exported %s", got)
	}
}

func TestVolumesAreListedUsedAndPruned(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	v, err := r.CreateVolume(ctx, VolumeRequest{Name: "v", Labels: map[string]string{"a": "b"}})
	if err != nil || v.Labels["a"] != "b" || v.Anonymous {
		t.Errorf("volume is %+v, %v", v, err)
	}
	if _, err := r.CreateVolume(ctx, VolumeRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateVolume(ctx, VolumeRequest{Name: "nfs", Options: map[string]string{"type": "nfs", "device": ":/x"}}); !errdefs.IsNotImplemented(err) {
		t.Errorf("an nfs volume: %v", err)
	}
	id := r.create(CreateRequest{RunRequest: RunRequest{Mounts: []Mount{{Kind: MountVolume, Source: "v", Target: "/v"}}}})
	if err := r.RemoveVolume(ctx, "v"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume is in use - ["+id+"]") {
		t.Errorf("removing what is used: %v", err)
	}
	p, err := r.PruneVolumes(ctx, func(v *Volume) bool { return !v.Anonymous })
	if err != nil || len(p.Names) != 1 || p.Names[0] == "v" {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if err := r.Remove(ctx, id, RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveVolume(ctx, "v"); err != nil {
		t.Error(err)
	}
	if err := r.RemoveVolume(ctx, "v"); !errdefs.IsNotFound(err) {
		t.Errorf("removing what is gone: %v", err)
	}
}

// A process that is being started in the moment in which a container ends has a copy of the lock
// of the container's directory, on a busy machine for long.
func TestContainerIsRemovedWhoeverHasACopyOfItsLock(t *testing.T) {
	r := newRig(t)
	r.exec.program = signalled
	id := r.create(CreateRequest{RunRequest: RunRequest{Args: []string{"x"}, Remove: true}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	removed, err := r.Wait(ctx, id, WaitRemoved)
	if err != nil {
		t.Fatal(err)
	}
	r.start(id)
	run, err := r.known(id).running()
	if err != nil {
		t.Fatal(err)
	}
	held, err := unix.FcntlInt(run.c.dir.Hold().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	if err := r.Kill(t.Context(), id, "HUP"); err != nil {
		t.Fatal(err)
	}
	if w := <-removed; w.Err != nil {
		t.Errorf("it is not removed: %v", w.Err)
	}
}
