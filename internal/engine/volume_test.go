package engine

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"den/internal/sandbox"
)

func (r *rig) volume(name string) string {
	r.t.Helper()
	dir, hold, _, err := r.Store.Volume(r.t.Context(), name, false)
	if err := errors.Join(err, hold.Close()); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, rerr := filepath.Rel(dir, path)
		out[rel] = string(data)
		return errors.Join(err, rerr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var seeded = map[string]string{"seed": "seed", "sub/deep": "deep"}

func TestEmptyVolumeIsFilledFromTheImage(t *testing.T) {
	r := newRig(t)
	use := RunRequest{Remove: true, Mounts: []Mount{{Kind: MountVolume, Source: "v", Target: "/data"}}}
	empty := use
	empty.Mounts = []Mount{{Kind: MountVolume, Source: "v", Target: "/data", NoCopy: true}}
	r.mustRun(empty)
	if d := cmp.Diff(map[string]string{}, files(t, r.volume("v"))); d != "" {
		t.Error(d)
	}
	r.mustRun(use)
	if d := cmp.Diff(seeded, files(t, r.volume("v"))); d != "" {
		t.Error(d)
	}
	fi, err := os.Stat(filepath.Join(r.volume("v"), "seed"))
	if err != nil || fi.Mode() != 0o640 {
		t.Errorf("mode is %v, %v", fi.Mode(), err)
	}
	if err := os.Remove(filepath.Join(r.volume("v"), "seed")); err != nil {
		t.Fatal(err)
	}
	r.mustRun(use)
	if _, err := os.Stat(filepath.Join(r.volume("v"), "seed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a container removed came back: %v", err)
	}
}

func TestVolumeThatADeadDenLeftHalfFilledIsFilledAgain(t *testing.T) {
	r := newRig(t)
	dir, hold, _, err := r.Store.Volume(t.Context(), "v", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(dir, "half"), filepath.Join(filepath.Dir(dir), fillingFile)} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := hold.Close(); err != nil {
		t.Fatal(err)
	}
	r.mustRun(RunRequest{Remove: true, Mounts: []Mount{{Kind: MountVolume, Source: "v", Target: "/data"}}})
	if d := cmp.Diff(seeded, files(t, dir)); d != "" {
		t.Error(d)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), fillingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is still there: %v", err)
	}
}

func TestAllWhoShareANewVolumeSeeItFilled(t *testing.T) {
	r := newRig(t)
	r.exec.program = func(s *fakeSandbox) int {
		for _, m := range s.request.Mounts {
			if m.Target == "/data" {
				if _, err := os.Stat(filepath.Join(m.Source, "sub", "deep")); err != nil {
					return 1
				}
				return 0
			}
		}
		return 2
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			exit, err := r.run(RunRequest{Remove: true, Mounts: []Mount{{Kind: MountVolume, Source: "v", Target: "/data"}}}, Streams{})
			if err != nil || exit.Code != 0 {
				t.Errorf("exit is %+v, %v", exit, err)
			}
		})
	}
	wg.Wait()
}

func TestAnonymousVolumesGoWithTheirContainer(t *testing.T) {
	r := newRig(t, "VOLUME /data /other")
	count := func(want int) {
		t.Helper()
		v, err := r.Store.Volumes()
		if err != nil || len(v) != want {
			t.Errorf("volumes are %q, want %d: %v", v, want, err)
		}
	}
	named := Mount{Kind: MountVolume, Source: "named", Target: "/other"}
	r.mustRun(RunRequest{Name: "c", Mounts: []Mount{named}})
	count(2)
	r.mustRun(RunRequest{Remove: true})
	count(2)
	r.exec.fail = &sandbox.ExecError{Program: "x", Code: 127, Err: sandbox.ErrNotInPath}
	if _, err := r.run(RunRequest{Remove: true}, Streams{}); err == nil {
		t.Error("it started")
	}
	count(2)
	if removed, err := r.PruneVolumes(t.Context(), nil); len(removed.Names) > 0 || err != nil {
		t.Errorf("a container's volumes were pruned: %q, %v", removed.Names, err)
	}
	if err := r.Remove(t.Context(), "c", RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	count(1)
	removed, err := r.PruneVolumes(t.Context(), nil)
	if d := cmp.Diff([]string{"named"}, removed.Names); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestMissingBindSourceIsMadeOnlyForVolumeFlag(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	m := Mount{Kind: MountBind, Source: dir, Target: "/x"}
	if _, err := r.run(RunRequest{Remove: true, Mounts: []Mount{m}}, Streams{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error is %v", err)
	}
	m.CreateSource = true
	r.mustRun(RunRequest{Remove: true, Mounts: []Mount{m}})
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		t.Errorf("it was not made: %v", err)
	}
}
