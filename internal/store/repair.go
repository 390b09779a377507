package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A Repair is what became of the problems that Verify found.
type Repair struct {
	// Removed are paths of objects and records that can be made again.
	Removed []string
	// Kept are what somebody uses, and what only a person can replace:
	// references and containers.
	Kept []Problem
}

// Repair removes the damaged objects and records of r, beside the store's
// users. Everything it removes is a cache; it repairs nothing in place.
func (s *Store) Repair(ctx context.Context, r Report) (Repair, error) {
	var done Repair
	if err := s.writable(); err != nil {
		return done, fmt.Errorf("repair: %w", err)
	}
	seen := map[string]bool{}
	for _, p := range r.Problems {
		if ctx.Err() != nil {
			return done, context.Cause(ctx)
		}
		if seen[p.Path] {
			continue
		}
		seen[p.Path] = true
		removed, err := s.removeDamaged(p)
		if err != nil {
			return done, fmt.Errorf("repair %s: %w", p.Path, err)
		}
		if removed {
			done.Removed = append(done.Removed, p.Path)
		} else {
			done.Kept = append(done.Kept, p)
		}
	}
	return done, nil
}

// removeDamaged removes what p is about, unless it is something else by now.
func (s *Store) removeDamaged(p Problem) (bool, error) {
	path := s.path(p.Path)
	top, _, _ := strings.Cut(p.Path, "/")
	switch top {
	case "cache":
		if inodeOf(path) != p.inode {
			return true, nil // replaced
		}
		return true, removeFile(path)
	case "blobs", "layers":
		if !isHex(filepath.Base(path)) {
			return false, nil // of another format, and not ours to judge
		}
	default:
		return false, nil
	}
	removed := false
	err := s.ifUnused(path, func() error {
		if inodeOf(path) != p.inode {
			removed = true
			return nil
		}
		trash, err := s.moveToTrash(path)
		if err != nil {
			return err
		}
		removed = true
		return sys.RemoveTree(trash)
	})
	if _, serr := os.Lstat(path); errors.Is(serr, unix.ENOENT) {
		removed = true
	}
	return removed, err
}
