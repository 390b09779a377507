package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// rootsFile, in a container's directory, says what the collector must keep.
const rootsFile = "roots.json"

// A ContainerDir is the mutable directory of one of the engine's containers.
// Who runs the container holds its lock.
type ContainerDir struct {
	store *Store
	id    string
	file  *os.File

	mu     sync.Mutex
	locked bool
	closed bool
}

var plainContainerID = shape{8, 64, lowerCase + digits, lowerCase + digits}

func (s *Store) containerPath(cid string) string { return s.path(s.engineRel("containers", cid)) }

// NetworksDir makes the directory that the engine keeps its networks in, which goes
// with the engine.
func (s *Store) NetworksDir(ctx context.Context) (string, error) {
	return s.engineFolder(ctx, "networks")
}

// EventsDir makes the directory that the engine keeps its events in, which goes
// with the engine.
func (s *Store) EventsDir(ctx context.Context) (string, error) { return s.engineFolder(ctx, "events") }

func (s *Store) engineFolder(ctx context.Context, name string) (string, error) {
	if err := s.lockEngine(ctx, true); err != nil {
		return "", err
	}
	dir := s.path(s.engineRel(name))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// NewContainer makes the directory of the container cid, born locked; the
// error is of class errdefs.ErrAlreadyExists when there is one.
func (s *Store) NewContainer(ctx context.Context, cid string) (*ContainerDir, error) {
	if !plainContainerID.matches(cid) {
		return nil, fmt.Errorf("new container: id %.80q: %w", cid, errdefs.ErrInvalidArgument)
	}
	if err := s.lockEngine(ctx, true); err != nil {
		return nil, err
	}
	f, err := s.newTmp(unix.LOCK_EX, createDir)
	if err != nil {
		return nil, fmt.Errorf("new container %s: %w", cid, err)
	}
	if err = failpoint.Hit("store.container.rename"); err == nil {
		err = s.renameNew(f.Name(), s.containerPath(cid))
	}
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrAlreadyExists)
		}
		return nil, errors.Join(fmt.Errorf("new container %s: %w", cid, err), sys.RemoveTree(f.Name()), f.Close())
	}
	return &ContainerDir{store: s, id: cid, file: f, locked: true}, nil
}

// OpenContainer opens the directory of the container cid, without its lock.
func (s *Store) OpenContainer(cid string) (*ContainerDir, error) {
	if !plainContainerID.matches(cid) {
		return nil, fmt.Errorf("container %.80q: %w", cid, errdefs.ErrNotFound)
	}
	f, err := openObject(s.containerPath(cid))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cid, notFoundIfBad(err))
	}
	return &ContainerDir{store: s, id: cid, file: f}, nil
}

// ContainerPath is where the directory of the container cid is, if there is one.
func (s *Store) ContainerPath(cid string) string { return s.containerPath(cid) }

// Containers lists the ids of the engine's containers.
func (s *Store) Containers() ([]string, error) {
	names, err := readNames(s.path(s.engineRel("containers")))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return names, nil
}

// ID is the container's id.
func (c *ContainerDir) ID() string { return c.id }

// Path is the directory.
func (c *ContainerDir) Path() string { return c.store.containerPath(c.id) }

// TryLock takes the lock if nobody runs the container; false says that somebody
// does, or that the container was removed.
func (c *ContainerDir) TryLock() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tryLock()
}

func (c *ContainerDir) tryLock() (bool, error) {
	if c.locked || c.closed {
		return c.locked, nil
	}
	ok, err := sys.TryFlock(c.file, unix.LOCK_EX)
	if !ok || err != nil {
		return false, err
	}
	same, err := sys.SameInode(c.file, c.Path())
	if !same || err != nil {
		return false, errors.Join(err, sys.Flock(c.file, unix.LOCK_UN))
	}
	c.locked = true
	return true, nil
}

// Hold is the lock, once taken: who keeps a copy of it open runs the container.
// It belongs to the container's directory.
func (c *ContainerDir) Hold() *os.File { return c.file }

// SetRoots says what the collector must keep for the container. Until then the
// caller's leases do.
func (c *ContainerDir) SetRoots(r Record) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("container %s: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = c.store.writeFile(c.store.engineRel("containers", c.id, rootsFile), data, true)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// Remove removes the directory and gives the lock back; the error is of class
// errdefs.ErrFailedPrecondition while somebody else runs the container.
func (c *ContainerDir) Remove() error {
	clear, err := c.Discard()
	if err != nil {
		return err
	}
	return clear()
}

// Discard is Remove for who does not wait for the disk: the container is gone, and its
// files go when the caller calls clear, or with the next collection. Files of the directories
// read in it are not emptied: who has them open reads on.
func (c *ContainerDir) Discard(read ...string) (clear func() error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok, err := c.tryLock()
	if err != nil {
		return nil, fmt.Errorf("remove container %s: %w", c.id, err)
	}
	if !ok {
		return nil, fmt.Errorf("remove container %s: it is in use: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	path := c.Path()
	if len(read) > 0 {
		// Whoever dies here leaves a container, or none, and never one without its logs. Among the
		// drafts the lock keeps the collector away, who empties what it finds in the trash.
		draft := c.store.path("tmp", rand.Text())
		if err := os.Rename(path, draft); err != nil {
			return nil, fmt.Errorf("remove container %s: %w", c.id, err)
		}
		path = draft
	}
	if err := failpoint.Hit("store.container.discard"); err != nil {
		return nil, fmt.Errorf("remove container %s: %w", c.id, err)
	}
	for _, dir := range read {
		if err := os.RemoveAll(filepath.Join(path, dir)); err != nil {
			return nil, fmt.Errorf("remove container %s: %w", c.id, err)
		}
	}
	trash, err := c.store.moveToTrash(path)
	if err != nil {
		return nil, fmt.Errorf("remove container %s: %w", c.id, err)
	}
	c.closed = true
	if err := c.file.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("remove container %s: %w", c.id, err), sys.RemoveTree(trash))
	}
	return func() error {
		if err := sys.RemoveTree(trash); err != nil {
			return fmt.Errorf("remove container %s: %w", c.id, err)
		}
		return nil
	}, nil
}

// Close gives up the directory; the lock goes with the last copy of Hold.
func (c *ContainerDir) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.file.Close()
}

var plainName = shape{1, 255, alnum, alnum + "_.-"}

// withNames runs fn while no other process changes the engine's names.
func (s *Store) withNames(ctx context.Context, fn func() error) error {
	if err := s.lockEngine(ctx, true); err != nil {
		return err
	}
	if err := os.MkdirAll(s.path(s.engineRel("names")), 0o755); err != nil {
		return err
	}
	select {
	case s.naming <- struct{}{}:
		defer func() { <-s.naming }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w, err := s.Work(ctx, "names", s.engine.id, nil)
	if err != nil {
		return err
	}
	defer w.Done()
	return fn()
}

// NameContainer gives the container cid a name; the error is of class
// errdefs.ErrAlreadyExists when another container has it.
func (s *Store) NameContainer(ctx context.Context, name, cid string) error {
	if !plainName.matches(name) {
		return fmt.Errorf("container name %.80q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed: %w", name, errdefs.ErrInvalidArgument)
	}
	err := s.withNames(ctx, func() error {
		owner, err := s.nameOwner(name)
		if err == nil && owner != cid {
			return fmt.Errorf("it is in use by container %s: %w", owner, errdefs.ErrAlreadyExists)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return s.writeFile(s.engineRel("names", name), []byte(cid), true)
	})
	if err != nil {
		return fmt.Errorf("container name %s: %w", name, err)
	}
	return nil
}

// nameOwner is the container that a name belongs to; a name whose container is
// gone belongs to none.
func (s *Store) nameOwner(name string) (string, error) {
	data, err := readBounded(s.path(s.engineRel("names", name)))
	if err != nil {
		return "", notFoundIfBad(err)
	}
	cid := string(data)
	if !plainContainerID.matches(cid) {
		return "", fmt.Errorf("name %s: malformed: %w", name, errdefs.ErrNotFound)
	}
	if _, err := os.Lstat(s.containerPath(cid)); err != nil {
		return "", notFoundIfBad(err)
	}
	return cid, nil
}

// UnnameContainer frees a name.
func (s *Store) UnnameContainer(name string) error {
	if !plainName.matches(name) {
		return fmt.Errorf("container name %.80q: %w", name, errdefs.ErrNotFound)
	}
	if err := removeFile(s.path(s.engineRel("names", name))); err != nil {
		return fmt.Errorf("container name %s: %w", name, err)
	}
	return nil
}

// ContainerByName finds the container with that name, with that id, or with the
// only id that begins so, in this order.
func (s *Store) ContainerByName(nameOrIDPrefix string) (cid string, err error) {
	if plainName.matches(nameOrIDPrefix) {
		cid, err := s.nameOwner(nameOrIDPrefix)
		if err == nil || !errdefs.IsNotFound(err) {
			return cid, err
		}
	}
	ids, err := s.Containers()
	if err != nil {
		return "", err
	}
	var found []string
	for _, id := range ids {
		if id == nameOrIDPrefix {
			return id, nil
		}
		if nameOrIDPrefix != "" && strings.HasPrefix(id, nameOrIDPrefix) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no such container: %.200s: %w", nameOrIDPrefix, errdefs.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("several containers begin with %.200s: %w", nameOrIDPrefix, errdefs.ErrInvalidArgument)
}

// ContainerNames maps the ids of the engine's containers to their names.
func (s *Store) ContainerNames() (map[string]string, error) {
	names, err := readNames(s.path(s.engineRel("names")))
	if err != nil {
		return nil, fmt.Errorf("list container names: %w", err)
	}
	byID := map[string]string{}
	for _, name := range names {
		cid, err := s.nameOwner(filepath.Base(name))
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list container names: %w", err)
		}
		byID[cid] = name
	}
	return byID, nil
}
