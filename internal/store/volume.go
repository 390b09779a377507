package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// Volumes are the engine's, and apart by ownership class: the ids of files in
// them mean something only in the user namespace that wrote them.
func (s *Store) volumeRel(elem ...string) string {
	return filepath.Join(append([]string{"volumes", s.class, s.engine.id}, elem...)...)
}

// Volume returns the directory of the engine's volume called name, and the
// lease that keeps it from being removed, which the caller closes. With create
// it makes a missing one, and fresh says that it did; else the error is of
// class errdefs.ErrNotFound.
func (s *Store) Volume(ctx context.Context, name string, create bool) (dir string, hold *os.File, fresh bool, err error) {
	return s.volume(ctx, name, create, nil)
}

// MakeVolume is Volume with create and, for a volume that is made, files beside its directory, by
// their names: whoever finds the volume finds them.
func (s *Store) MakeVolume(ctx context.Context, name string, files map[string][]byte) (dir string, hold *os.File, fresh bool, err error) {
	return s.volume(ctx, name, true, files)
}

func (s *Store) volume(ctx context.Context, name string, create bool, files map[string][]byte) (dir string, hold *os.File, fresh bool, err error) {
	if !plainName.matches(name) {
		return "", nil, false, fmt.Errorf("volume %.80q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed: %w", name, errdefs.ErrInvalidArgument)
	}
	path := s.path(s.volumeRel(name))
	for {
		f, err := openObject(path)
		if errors.Is(err, fs.ErrNotExist) && create {
			f, err = s.newVolume(ctx, path, files)
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			fresh = err == nil
		}
		if err != nil {
			return "", nil, false, fmt.Errorf("volume %s: %w", name, notFoundIfBad(err))
		}
		// Nobody but a reader who means harm holds it exclusively for long; then
		// only removing it by name is not kept away.
		err = s.lockShortly(ctx, f, unix.LOCK_SH)
		if errors.Is(err, errBusy) {
			err = nil
		}
		same := false
		if err == nil {
			same, err = sys.SameInode(f, path)
		}
		if same {
			return filepath.Join(path, fsDir), f, fresh, nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return "", nil, false, fmt.Errorf("volume %s: %w", name, err)
		}
	}
}

func (s *Store) newVolume(ctx context.Context, path string, files map[string][]byte) (*os.File, error) {
	if err := s.lockEngine(ctx, true); err != nil {
		return nil, err
	}
	f, err := s.newTmp(unix.LOCK_SH, createDir)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(f.Name(), fsDir)
	err = os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	for name, data := range files {
		if err == nil {
			err = os.WriteFile(filepath.Join(f.Name(), name), data, 0o600)
		}
	}
	if err == nil {
		err = failpoint.Hit("store.volume.rename")
	}
	if err == nil {
		err = s.renameNew(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, sys.RemoveTree(f.Name()), f.Close())
	}
	return f, nil
}

// Volumes lists the engine's volumes by name.
func (s *Store) Volumes() ([]string, error) {
	names, err := readNames(s.path(s.volumeRel()))
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return slices.DeleteFunc(names, func(n string) bool { return !plainName.matches(n) }), nil
}

// exitGrace is for how long a lock may outlive its use: a process that was forked has it until it
// executes its program, and one that was killed until the kernel has taken it apart.
const exitGrace = time.Second

// RemoveVolume removes a volume; the error is of class errdefs.ErrNotFound when
// there is none, errdefs.ErrFailedPrecondition while somebody uses it.
func (s *Store) RemoveVolume(name string) error {
	if !plainName.matches(name) {
		return fmt.Errorf("volume %.80q: %w", name, errdefs.ErrNotFound)
	}
	path := s.path(s.volumeRel(name))
	if _, err := os.Lstat(path); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, notFoundIfBad(err))
	}
	ok, err := s.discard(path)
	for end := time.Now().Add(exitGrace); err == nil && !ok && time.Now().Before(end); {
		time.Sleep(exitGrace / 100)
		ok, err = s.discard(path)
	}
	if err == nil && !ok {
		err = fmt.Errorf("it is in use: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}
