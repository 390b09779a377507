package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"den/internal/durable"
	"den/internal/failpoint"
	"den/internal/oci"
	"den/internal/sys"
)

// recover deals with what the kernels before boot published and did not sync.
// The first process after a reboot does it, and every other waits.
func (s *Store) recover(ctx context.Context, boot string) error {
	dir := s.path("sync")
	if ok, err := durable.Clean(dir, boot); ok || err != nil {
		return err
	}
	// Some may not have reached the disk with the format file.
	if err := s.makeFolders(); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	// Whoever shows no sign of life is not waited for: a reader could hold it.
	w, err := s.workAt(ctx, s.path("lock", "recover"), nil)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	defer w.Done()
	if ok, err := durable.Clean(dir, boot); ok || err != nil {
		return err
	}
	rebooted, err := durable.Rebooted(dir, boot)
	if rebooted && !broken("norecovery") {
		err = s.recoverLocked(ctx, dir, boot)
	}
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	// Made last: it tells the others that all is well.
	if err := failpoint.Hit("store.recover.mkdir"); err != nil {
		return err
	}
	err = s.beginBoot(boot)
	if done, cerr := durable.Clean(dir, boot); done {
		return cerr // perhaps somebody else's, who had not waited for us
	}
	return err
}

func (s *Store) recoverLocked(ctx context.Context, dir, boot string) error {
	suspects, err := durable.Suspects(dir, boot)
	if err != nil {
		return err
	}
	var dropped int
	for _, rel := range suspects {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := failpoint.Hit("store.recover.check"); err != nil {
			return err
		}
		ok, err := s.sound(ctx, rel)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		if ok {
			continue
		}
		if done, err := durable.Clean(dir, boot); done || err != nil {
			return err // we were stopped, and another has done it: the store is in use
		}
		dropped++
		if err := s.drop(rel); err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		if strings.HasPrefix(rel, "engines/") || strings.HasPrefix(rel, pulledFolder+"/") {
			s.notice(fmt.Sprintf("store %s: %s was torn by a crash and is gone", s.root, rel))
		}
	}
	unusable, err := s.dropUnusable(ctx, suspects)
	if err != nil {
		return err
	}
	if dropped += unusable; dropped > 0 {
		s.notice(fmt.Sprintf("store %s: after a crash, %d of the %d objects written last are dropped and will be made again",
			s.root, dropped, len(suspects)+unusable))
		if err := s.dropOrphans(ctx); err != nil {
			return err
		}
	}
	// Bytes of a download that was under way may be zeros.
	partials, err := readNames(s.path("ingest"))
	if err != nil {
		return err
	}
	for _, name := range partials {
		if err := failpoint.Hit("store.recover.ingest"); err != nil {
			return err
		}
		if err := sys.RemoveTree(s.path("ingest", name)); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("store.recover.acquit"); err != nil {
		return err
	}
	return durable.Acquit(dir, boot)
}

// sound reports whether a suspect is what its name promises. What is not
// there any more is sound.
func (s *Store) sound(ctx context.Context, rel string) (bool, error) {
	top, rest, _ := strings.Cut(rel, "/")
	path := s.path(rel)
	switch {
	case top == "blobs":
		hex := strings.TrimPrefix(rest, "sha256/")
		if !isHex(hex) {
			return true, nil
		}
		return s.soundBlob(ctx, path, oci.Digest("sha256:"+hex))
	case top == "layers":
		// A tree is not worth checking: it is unpacked or built again.
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist), ignore(err, os.ErrNotExist)
	case strings.HasSuffix(rel, ".json"):
		var r Ref
		_, err := readJSON(path, &r)
		if err == nil {
			err = r.check()
			return err == nil, nil
		}
		if _, bad := errors.AsType[*badFileError](err); bad {
			return false, nil
		}
		return true, ignore(err, os.ErrNotExist)
	}
	return true, nil
}

func (s *Store) soundBlob(ctx context.Context, path string, want oci.Digest) (bool, error) {
	f, err := openObject(path)
	if err != nil {
		return errors.Is(err, os.ErrNotExist), ignore(err, os.ErrNotExist)
	}
	defer f.Close()
	got, _, err := oci.Copy(discardWriter{}, &ctxReader{ctx, f})
	if err != nil && ctx.Err() == nil {
		return false, nil // what the disk can not read is no blob
	}
	return got == want, err
}

type discardWriter struct{}

func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }

// drop removes a suspect. Nobody has a lease on it: no store is open yet.
func (s *Store) drop(rel string) error {
	if err := failpoint.Hit("store.recover.drop"); err != nil {
		return err
	}
	trash, err := s.moveToTrash(s.path(rel))
	if err != nil {
		return ignore(err, os.ErrNotExist)
	}
	return sys.RemoveTree(trash)
}
