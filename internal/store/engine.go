package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// engineIDFile holds an engine's id, in the engine's own directory.
const engineIDFile = "engine-id"

// An engine is one job's names for what all share: its tags, containers,
// volumes. Its folder in the store is made when it first names something, and
// locked while a process of it lives, so that the folders of dead jobs can be
// told and collected.
type engine struct {
	id   string
	mu   sync.Mutex
	lock *os.File
}

var plainEngineID = shape{8, 64, alnum, alnum + "_-"}

// openEngine finds the id in dir, and makes one when there is none.
func (s *Store) openEngine(ctx context.Context, dir string) error {
	var id string
	var err error
	if dir != "" {
		id, err = engineID(filepath.Join(dir, engineIDFile))
	} else {
		id, err = s.defaultEngine(engineDirs(os.Geteuid(), os.Getenv))
	}
	if err != nil {
		// A read-only home, say. The job's next command will not know its tags.
		id = newEngineID()
		s.notice(fmt.Sprintf("names end with this command, because the engine's id can not be kept: %v; set DEN_DATA_ROOT to a directory of this job's own", err))
	}
	s.engine.id = id
	return s.lockEngine(ctx, false)
}

func newEngineID() string { return strings.ToLower(rand.Text()) }

func engineID(path string) (string, error) {
	id, err := readEngineID(path)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	tmp := path + "." + rand.Text()
	if err := writeSynced(tmp, []byte(newEngineID()+"\n")); err != nil {
		return "", err
	}
	// Of two first commands at once, one names the engine.
	err = sys.RenameNoReplace(tmp, path)
	if err != nil {
		err = errors.Join(removeFile(tmp), ignore(err, os.ErrExist))
	}
	if err != nil {
		return "", err
	}
	return readEngineID(path)
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

func readEngineID(path string) (string, error) {
	data, err := readBounded(path)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(data))
	if !plainEngineID.matches(id) {
		return "", fmt.Errorf("%s: malformed id %.80q", path, id)
	}
	return id, nil
}

// EngineID names the engine that this process belongs to.
func (s *Store) EngineID() string { return s.engine.id }

// engineRel is a path in the engine's folder, relative to the root.
func (s *Store) engineRel(elem ...string) string {
	return filepath.Join(append([]string{"engines", s.engine.id}, elem...)...)
}

// lockEngine takes the lock that shows the engine is alive. It makes the
// folder first if create is set, else it does without when there is none.
func (s *Store) lockEngine(ctx context.Context, create bool) error {
	e := &s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lock != nil {
		return nil
	}
	if create {
		if err := s.writable(); err != nil {
			return err
		}
	}
	path := s.path(s.engineRel("lock"))
	for {
		f, err := openEngineLock(path, create)
		if errors.Is(err, os.ErrNotExist) && !create {
			return nil
		}
		if err != nil {
			return fmt.Errorf("engine %s: %w", e.id, err)
		}
		err = s.lockShortly(ctx, f, unix.LOCK_SH)
		if errors.Is(err, errBusy) {
			// Who only reads the store could hold it. Without the lock, the engine
			// counts as dead when it was not used for engineTTL.
			return errors.Join(s.touchEngine(path), f.Close())
		}
		if err != nil {
			return errors.Join(fmt.Errorf("engine %s: %w", e.id, err), f.Close())
		}
		same, err := sys.SameInode(f, path)
		if same {
			e.lock = f
			return s.touchEngine(path)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("engine %s: %w", e.id, err)
		}
	}
}

func openEngineLock(path string, create bool) (*os.File, error) {
	if !create {
		return os.Open(path)
	}
	if err := failpoint.Hit("store.engine.lock"); err != nil {
		return nil, err
	}
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		// The collector may take the empty folder away in between.
		if !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
	}
}

// touchEngine dates the engine's last use.
func (s *Store) touchEngine(path string) error {
	if s.readOnly {
		return nil
	}
	if err := failpoint.Hit("store.engine.touch"); err != nil {
		return err
	}
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil {
		return fmt.Errorf("engine %s: %w", s.engine.id, err)
	}
	return nil
}
