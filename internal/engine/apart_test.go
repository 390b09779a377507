package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"den/internal/durable"
	"den/internal/image"
	"den/internal/oci"
	"den/internal/snapshot"
	"den/internal/store"
)

const (
	apartJobs   = 20
	apartRounds = 2
)

// Twenty jobs with engines of their own do the same on one store at once, under
// the same names: each sees its own, and only that.
func TestEnginesOnOneStoreNeverSeeEachOther(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	for i := range apartJobs {
		st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), Durability: durable.None})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
		j := &apartJob{id: i, st: st}
		wg.Go(func() {
			for round := range apartRounds {
				if err := j.round(t.Context(), round); err != nil {
					t.Errorf("job %d, round %d: %v", i, round, err)
					return
				}
			}
		})
	}
	wg.Wait()
	st, err := store.Open(t.Context(), root, store.Options{EngineDir: t.TempDir(), Durability: durable.None})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r, err := st.Verify(t.Context(), true)
	if err != nil || len(r.Problems)+len(r.Dangling) > 0 {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

// An apartJob is one of many that use the same names.
type apartJob struct {
	id     int
	st     *store.Store
	engine *Engine
	images *image.Images
}

// round builds, tags, runs, prunes and removes app:test.
func (j *apartJob) round(ctx context.Context, round int) error {
	j.images = image.New(j.st, nil, image.Options{InUse: j.inUse})
	j.engine = New(Options{Store: j.st, Images: j.images, Exec: &fakeExecutor{}, Driver: snapshot.Drivers()[0]})
	own := fmt.Sprintf("job %d round %d", j.id, round)
	img, err := j.build(ctx, own)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"list", func() error { return j.seesOnly(ctx, img) }},
		{"run", func() error { return j.runOne(ctx, own) }},
		{"tag", func() error { return j.images.Tag(ctx, "app:test", "app:other") }},
		{"prune", func() error { return j.prune(ctx) }},
		{"list after prune", func() error { return j.seesOnly(ctx, img) }},
		{"remove", func() error { return j.remove(ctx) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (j *apartJob) inUse(config oci.Digest) []string {
	users, err := j.engine.Users(config)
	if err != nil {
		return []string{err.Error()}
	}
	return users
}

// build makes an image out of a layer that all jobs share and one of its own.
func (j *apartJob) build(ctx context.Context, own string) (*image.Image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// Two jobs each make the same tree, at the same time.
	text := fmt.Sprint("shared by ", j.id/2)
	err := w.WriteHeader(&tar.Header{Name: "data/own", Mode: 0o644, Size: int64(len(text)), Uid: os.Geteuid(), Gid: os.Getegid()})
	_, werr := io.WriteString(w, text)
	if err := errors.Join(err, werr, w.Close()); err != nil {
		return nil, err
	}
	changes := []string{`CMD ["/bin/true"]`, fmt.Sprintf("LABEL job=%q", own)}
	return j.images.Import(ctx, &b, image.ImportOptions{Name: "app:test", Changes: changes})
}

// seesOnly checks that app:test is img and all that there is.
func (j *apartJob) seesOnly(ctx context.Context, img *image.Image) error {
	got, err := j.images.Inspect(ctx, "app:test", nil)
	if err != nil {
		return err
	}
	if got.ID != img.ConfigDigest {
		return fmt.Errorf("app:test is %s, want the own %s", got.ID, img.ConfigDigest)
	}
	list, err := j.images.List(ctx, nil)
	if err != nil {
		return err
	}
	if len(list) != 1 || list[0].ConfigDigest != img.ConfigDigest {
		return fmt.Errorf("there are %d images, want the own", len(list))
	}
	return nil
}

// runOne runs a container and writes into its volume.
func (j *apartJob) runOne(ctx context.Context, own string) error {
	req := RunRequest{Image: "app:test", Name: "c", Mounts: []Mount{{Kind: MountVolume, Source: "v", Target: "/data"}}}
	if _, err := j.engine.Run(ctx, req, Streams{}); err != nil {
		return err
	}
	list, err := j.engine.List()
	if err != nil {
		return err
	}
	if len(list) != 1 || list[0].Name != "c" {
		return fmt.Errorf("there are %d containers, want the own", len(list))
	}
	volumes, err := j.st.Volumes()
	if err != nil || len(volumes) != 1 {
		return fmt.Errorf("volumes are %q, %w", volumes, err)
	}
	dir, hold, _, err := j.st.Volume(ctx, "v", false)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "own")
	want := fmt.Sprint("shared by ", j.id/2) // copied from the image
	data, err := os.ReadFile(path)
	if err == nil && string(data) != want {
		err = fmt.Errorf("volume holds %q, want %q", data, want)
	}
	return errors.Join(err, hold.Close())
}

// prune removes everything that this engine does not need, and all cache.
func (j *apartJob) prune(ctx context.Context) error {
	removed, err := j.engine.Prune(func(*Summary) bool { return true })
	if err != nil || len(removed) > 0 {
		return fmt.Errorf("removed %q though all were to stay: %w", removed, err)
	}
	if _, _, err := j.images.Prune(ctx, image.PruneOptions{All: true}); err != nil {
		return err
	}
	_, err = j.st.Prune(ctx, store.PruneOptions{All: true})
	return err
}

// remove takes everything away again.
func (j *apartJob) remove(ctx context.Context) error {
	if err := j.engine.Remove(ctx, "c", RemoveOptions{Volumes: true}); err != nil {
		return err
	}
	if _, err := j.engine.PruneVolumes(ctx, nil); err != nil {
		return err
	}
	for _, name := range []string{"app:test", "app:other"} {
		if _, err := j.images.Remove(ctx, name, image.RemoveOptions{}); err != nil {
			return err
		}
	}
	if _, err := j.images.Inspect(ctx, "app:test", nil); !errdefs.IsNotFound(err) {
		return fmt.Errorf("app:test is still there: %w", err)
	}
	_, err := j.st.Prune(ctx, store.PruneOptions{All: true})
	return err
}
