package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/sys"
)

// newTmp makes a private file or directory in tmp/, born locked with how: the
// lock keeps the collector away while this process lives, and travels through
// the rename that publishes it.
func (s *Store) newTmp(how int, create func(path string) (*os.File, error)) (*os.File, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	for {
		path := s.path("tmp", rand.Text())
		if err := failpoint.Hit("store.tmp.create"); err != nil {
			return nil, err
		}
		f, err := create(path)
		if errors.Is(err, errReaped) {
			continue
		}
		if err != nil {
			return nil, err
		}
		same := false
		if err = failpoint.Hit("store.tmp.lock"); err == nil {
			// The collector may have taken it for a dead process's, and somebody
			// who only reads may have been faster: then another name may do.
			same, err = sys.TryFlock(f, how)
		}
		if same && err == nil {
			same, err = sys.SameInode(f, path)
		}
		if err == nil && same {
			return f, nil
		}
		// Somebody else's by now: the collector removes it, or will.
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, errors.Join(err, sys.RemoveTree(path))
		}
	}
}

func createFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
}

// errReaped says that the collector took a directory for a dead process's
// before it could be locked.
var errReaped = errors.New("reaped")

func createDir(path string) (*os.File, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errReaped
	}
	return f, err
}

// publish renames the complete from, beneath the root, to rel. The error is
// os.ErrExist when rel is taken and replace is not set.
func (s *Store) publish(from, rel string, replace bool) error {
	to := s.path(rel)
	rename := func() error {
		if err := failpoint.Hit("store.publish.rename"); err != nil {
			return err
		}
		if replace {
			return os.Rename(from, to)
		}
		return sys.RenameNoReplace(from, to)
	}
	marked := func() error { return s.log.Publish(rel, rename) }
	err := marked()
	if errors.Is(err, unix.ENOENT) {
		// The folder is made when the first name needs it.
		if err := failpoint.Hit("store.publish.mkdir"); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("publish %s: %w", rel, err)
		}
		err = marked()
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", rel, err)
	}
	if err := failpoint.Hit("store.publish.done"); err != nil {
		return err
	}
	if err := s.log.DetachIfDue(); err != nil {
		s.notice(fmt.Sprintf("store %s: %v", s.root, err))
	}
	return nil
}

// writeFile publishes data as the small file rel.
func (s *Store) writeFile(rel string, data []byte, replace bool) error {
	return s.RetryFull(context.Background(), func() error { return s.tryWriteFile(rel, data, replace) })
}

func (s *Store) tryWriteFile(rel string, data []byte, replace bool) error {
	f, err := s.newTmp(unix.LOCK_SH, createFile)
	if err != nil {
		return err
	}
	if err = failpoint.Hit("store.writefile.write"); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = s.publish(f.Name(), rel, replace)
	}
	if err != nil {
		return errors.Join(err, removeFile(f.Name()), f.Close())
	}
	return f.Close()
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// discard moves what path names, if nobody holds it, into the trash and
// removes it there. It reports whether it did. Who may only read leaves it.
func (s *Store) discard(path string) (bool, error) {
	if s.readOnly {
		return false, nil
	}
	f, err := openObject(path)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	ok, err := sys.TryFlock(f, unix.LOCK_EX)
	if !ok || err != nil {
		return false, err
	}
	if ok, err = sys.SameInode(f, path); !ok || err != nil {
		return false, err
	}
	trash, err := s.moveToTrash(path)
	if err != nil {
		return false, err
	}
	return true, sys.RemoveTree(trash)
}

// moveToTrash renames path, which the caller has locked exclusively.
func (s *Store) moveToTrash(path string) (string, error) {
	if err := failpoint.Hit("store.trash.rename"); err != nil {
		return "", err
	}
	trash := s.path("trash", rand.Text())
	if err := os.Rename(path, trash); err != nil {
		return "", err
	}
	return trash, nil
}
