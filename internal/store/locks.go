package store

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A Lock is a kernel lock on something in the store.
type Lock struct {
	// Path is relative to the store's root.
	Path      string
	Exclusive bool
	Waiting   bool
	// PID is who took the lock; 0 is a process of another pid namespace.
	PID int
	// Command is that process's, as far as it may be seen.
	Command string
}

// lockable are the patterns of what the protocol locks.
var lockable = []string{
	"lock/*", "blobs/sha256/*", "layers/*/*/*", "cachemount/*/*/*", "volumes/*/*/*", "engines/*/lock",
	"engines/*/containers/*", "tmp/*", "work/*", "reserve/*", "hosts/*", syncLocks,
}

// syncLocks are those of whom others do not wait for long, but do without.
const syncLocks = "sync/*/*"

// Locks lists who holds what in the store, or waits for it, by path. It looks
// in /proc/locks. That shows no locks of other pid namespaces to who is in one
// of their own, as containers are: there it tries each lock for an instant.
func (s *Store) Locks(ctx context.Context) ([]Lock, error) {
	device, err := sys.MountDevice(s.root)
	if err != nil {
		return nil, fmt.Errorf("locks: %w", err)
	}
	all, err := sys.HeldLocks()
	if err != nil {
		return nil, fmt.Errorf("locks: %w", err)
	}
	hidden := !sys.InitialPIDNamespace()
	byInode := map[uint64][]sys.HeldLock{}
	for _, l := range all {
		if l.Device == device {
			byInode[l.Inode] = append(byInode[l.Inode], l)
		}
	}
	var locks []Lock
	for _, pattern := range lockable {
		rels, err := fs.Glob(os.DirFS(s.root), pattern)
		if err != nil {
			return nil, fmt.Errorf("locks: %w", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for _, rel := range rels {
			seen := byInode[inodeOf(s.path(rel))]
			for _, l := range seen {
				locks = append(locks, Lock{rel, l.Exclusive, l.Waiting, l.PID, commandOf(l.PID)})
			}
			if !hidden || len(seen) > 0 || pattern == syncLocks {
				continue
			}
			if exclusive, held := heldByOthers(s.path(rel)); held {
				locks = append(locks, Lock{Path: rel, Exclusive: exclusive})
			}
		}
	}
	slices.SortStableFunc(locks, func(a, b Lock) int { return strings.Compare(a.Path, b.Path) })
	return locks, nil
}

// heldByOthers reports whether somebody has path locked, and how, by trying to.
func heldByOthers(path string) (exclusive, held bool) {
	f, err := openObject(path)
	if err != nil {
		return false, false
	}
	defer f.Close()
	if ok, err := sys.TryFlock(f, unix.LOCK_SH); !ok || err != nil {
		return err == nil, err == nil
	}
	ok, err := sys.TryFlock(f, unix.LOCK_EX)
	return false, !ok && err == nil
}

// inodeOf is 0 when path is gone.
func inodeOf(path string) uint64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// commandOf is the command line of a process, or empty.
func commandOf(pid int) string {
	if pid == 0 {
		return ""
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return ""
	}
	const maxCommand = 200
	return strings.TrimSpace(strings.ReplaceAll(string(b[:min(len(b), maxCommand)]), "\x00", " "))
}
