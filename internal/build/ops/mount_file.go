package ops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/progress"
	"den/internal/sys"
)

// A madeOwner is who a file made for a step belongs to.
type madeOwner struct {
	uid, gid, mode uint32
}

// scratchPrefix begins the names of scratch directories in memory.
const scratchPrefix = "den-step-"

// scratch is a private directory for files that the step's sandbox mounts. It
// is in memory where the machine allows it, since secrets go there, and its
// names are gone once the payload runs.
func (s *step) scratch(ctx context.Context) (string, error) {
	if s.scratchDir != "" {
		return s.scratchDir, nil
	}
	if base := memoryDir(s.env); base != "" {
		dir, remove, err := newScratch(base)
		if err == nil {
			s.started = append(s.started, remove)
			s.scratchDir = dir
			return dir, nil
		}
	}
	d, err := s.env.Store.NewDraft(ctx)
	if err != nil {
		return "", err
	}
	s.started = append(s.started, d.Close)
	s.scratchDir = d.Dir()
	return s.scratchDir, nil
}

// newScratch makes a directory that is locked for as long as this process uses
// it, so that others can tell what a dead one left.
func newScratch(base string) (dir string, remove func() error, err error) {
	if dir, err = os.MkdirTemp(base, scratchPrefix); err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	if _, err := sys.TryFlock(f, unix.LOCK_EX); err != nil {
		return "", nil, errors.Join(err, f.Close(), os.Remove(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), f.Close()) }, nil
}

// orphanAge is how old an unlocked scratch directory has to be to be a dead
// process's, and not one that is about to be locked.
const orphanAge = time.Minute

// sweepScratch removes what processes left that were killed. What cannot be
// removed is somebody else's.
func sweepScratch(base string, now time.Time) {
	names, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, n := range names {
		st, err := n.Info()
		if err != nil || !n.IsDir() || !strings.HasPrefix(n.Name(), scratchPrefix) || now.Sub(st.ModTime()) < orphanAge {
			continue
		}
		dir := filepath.Join(base, n.Name())
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if free, err := sys.TryFlock(f, unix.LOCK_EX); err == nil && free {
			_ = os.RemoveAll(dir)
		}
		f.Close()
	}
}

// memoryDir is a writable directory in memory, or "".
func memoryDir(e *Env) string {
	dir, _ := memoise(e, "memory directory", func() (string, error) {
		for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm", "/run", os.TempDir()} {
			var st unix.Statfs_t
			if dir == "" || unix.Statfs(dir, &st) != nil || st.Type != unix.TMPFS_MAGIC {
				continue
			}
			if unix.Access(dir, unix.W_OK|unix.X_OK) == nil {
				sweepScratch(dir, time.Now())
				return dir, nil
			}
		}
		return "", nil
	})
	return dir
}

// fileMount makes a file for the step and mounts it read-only at target.
func (s *step) fileMount(ctx context.Context, target string, data []byte, o madeOwner) (oci.Mount, error) {
	dir, err := s.scratch(ctx)
	if err != nil {
		return oci.Mount{}, err
	}
	s.scratchFiles++
	name := filepath.Join(dir, strconv.Itoa(s.scratchFiles))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return oci.Mount{}, err
	}
	_, err = f.Write(data)
	if err == nil {
		err = s.env.own(f, o)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return oci.Mount{}, fmt.Errorf("file for %s: %w", target, err)
	}
	options := []string{"bind", "ro", "nosuid", "nodev"}
	if o.mode&0o111 == 0 {
		options = append(options, "noexec")
	}
	return oci.Mount{Type: "bind", Source: name, Target: target, Options: options, Fixed: true}, nil
}

// own gives a file to somebody, or records that it is theirs.
func (e *Env) own(f *os.File, o madeOwner) error {
	if e.Recorded {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		return sys.RecordOn(int(f.Fd()), &st, sys.Inode{Mode: unix.S_IFREG | o.mode&0o777, UID: o.uid, GID: o.gid}, sys.Self())
	}
	if o.uid != 0 || o.gid != 0 {
		if err := f.Chown(int(o.uid), int(o.gid)); err != nil {
			return err
		}
	}
	return unix.Fchmod(int(f.Fd()), o.mode&0o777)
}

// secretMount is a file with a secret's value; false when it is optional and
// missing.
func (s *step) secretMount(ctx context.Context, m *pb.Mount, target string) (oci.Mount, bool, error) {
	o := m.SecretOpt
	if o == nil {
		return oci.Mount{}, false, fmt.Errorf("no secret options: %w", errdefs.ErrInvalidArgument)
	}
	value, err := s.env.secret(ctx, o.ID)
	if err != nil {
		if o.Optional && isNoSecret(err) {
			err = nil
		}
		return oci.Mount{}, false, err
	}
	mnt, err := s.fileMount(ctx, target, value, madeOwner{uid: o.Uid, gid: o.Gid, mode: o.Mode})
	return mnt, true, err
}

// log shows den's own words in the output of the step.
func (s *step) log(text string) {
	s.sink.Event(progress.Event{Log: &progress.Log{Vertex: s.v.Digest, Stream: 2, Data: []byte(text), Timestamp: time.Now()}})
}
