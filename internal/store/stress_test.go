package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"den/internal/oci"
	"den/internal/sys"
)

// stressObjects are so few that users and collectors meet all the time.
const stressObjects = 4

// stressUser leases, uses and names objects until it is killed.
func stressUser(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "engine")})
	if err != nil {
		return err
	}
	for {
		text := fmt.Sprint("x", rand.IntN(stressObjects))
		l, err := s.Layer(ctx, digest.FromString("layer "+text))
		if errdefs.IsNotFound(err) {
			l, err = publishLayer(ctx, s, text)
		}
		if err != nil {
			return err
		}
		if err := l.mustHold(text); err != nil {
			return err
		}
		if rand.IntN(3) == 0 {
			key := digest.FromString(fmt.Sprint("record", rand.IntN(3)))
			if _, err := s.PutRecord(ctx, key, Record{Layers: []oci.Digest{l.DiffID()}}, true); err != nil {
				return err
			}
		}
		if err := errors.Join(l.mustHold(text), l.Close()); err != nil {
			return err
		}
	}
}

func (l *Layer) mustHold(text string) error {
	data, err := os.ReadFile(filepath.Join(l.Dirs()[0], "file"))
	if err == nil && string(data) != text {
		err = fmt.Errorf("%q", data)
	}
	if err != nil {
		return fmt.Errorf("layer in use does not hold %q: %w", text, err)
	}
	return nil
}

// stressCollector evicts and collects until it is killed.
func stressCollector(ctx context.Context, root string) error {
	s, err := Open(ctx, root, Options{EngineDir: filepath.Join(filepath.Dir(root), "engine")})
	if err != nil {
		return err
	}
	for {
		if rand.IntN(2) == 0 {
			if err := removeFile(s.recordPath(digest.FromString(fmt.Sprint("record", rand.IntN(3))))); err != nil {
				return err
			}
		}
		if _, err := s.Collect(ctx); err != nil {
			return err
		}
	}
}

// Users and collectors are killed at random; no object in use may go, and no
// record may dangle. DEN_STRESS=10m makes it last.
func TestNothingCorruptsUnderRandomKills(t *testing.T) {
	lasts := 2 * time.Second
	if d, err := time.ParseDuration(os.Getenv("DEN_STRESS")); err == nil {
		lasts = d
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	root := filepath.Join(t.TempDir(), "store")
	checker := openStore(t, root, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var wg sync.WaitGroup
	for _, role := range []string{"user", "user", "user", "collector", "collector"} {
		wg.Go(func() {
			for ctx.Err() == nil {
				killAtRandom(t, role, root)
			}
		})
	}
	for ctx.Err() == nil {
		mustNotDangle(t, checker)
	}
	wg.Wait()
	mustBeSound(t, checker)
	collect(t, checker)
	if r := mustBeSound(t, checker); len(r.Leftovers) > 0 {
		t.Errorf("left over: %v", r.Leftovers)
	}
}

// killAtRandom runs a child for up to 150 ms. It must not end by itself.
func killAtRandom(t *testing.T, role, root string) {
	cmd := child(t, role, root, "")
	if os.Geteuid() == 0 && rand.IntN(2) == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		return // no namespaces here; the other half of the children will do
	} else if err != nil {
		t.Error(err)
		return
	}
	kill := time.AfterFunc(time.Duration(5+rand.IntN(145))*time.Millisecond, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if kill.Stop() {
		t.Errorf("%s ended by itself: %v: %s", role, err, stderr(cmd))
	}
}

// mustNotDangle reads the records as a checker that holds nothing: a record
// that is there before and after may not name what is gone in between. The
// open file keeps its inode number from being used again meanwhile.
func mustNotDangle(t *testing.T, s *Store) {
	for i := range 3 {
		path := s.recordPath(digest.FromString(fmt.Sprint("record", i)))
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		var r Record
		if err := json.NewDecoder(f).Decode(&r); err != nil {
			t.Errorf("record %d: %v", i, err)
		} else if !hasLayer(t, s, r.Layers[0]) {
			if same, err := sys.SameInode(f, path); same && err == nil {
				t.Errorf("record %d names %s, which is gone", i, r.Layers[0])
			}
		}
		must(t, f.Close())
	}
}
