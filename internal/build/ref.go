package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"syscall"

	"github.com/containerd/errdefs"
	bkllb "github.com/moby/buildkit/client/llb"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"

	"den/internal/build/ops"
	"den/internal/build/solver"
	"den/internal/oci"
	"den/internal/tree"
)

// maxReadBytes bounds what a frontend reads of one file; the Dockerfile
// frontend itself stops at 16 MiB.
const maxReadBytes = 32 << 20

// ref is what a definition makes, made when first needed.
type ref struct {
	*gateway
	def  *pb.Definition
	edge *solver.Edge // nil is the empty file system
}

var _ gwclient.Reference = (*ref)(nil)

// result solves the definition. Nil is the empty file system.
func (r *ref) result(ctx context.Context) (*ops.Ref, error) {
	if r.edge == nil {
		return nil, nil
	}
	out, err := r.solver.Solve(ctx, *r.edge)
	if err != nil {
		return nil, withSources(r.def, err)
	}
	if out[0] == nil {
		return nil, nil
	}
	res, ok := out[0].(*ops.Ref)
	if !ok {
		return nil, fmt.Errorf("result of type %T", out[0])
	}
	return res, nil
}

// Evaluate executes what has to be.
func (r *ref) Evaluate(ctx context.Context) error {
	_, err := r.result(ctx)
	return err
}

// ToState is the definition as a part of another.
func (r *ref) ToState() (bkllb.State, error) { return state(r.def) }

// view calls fn with the files of the result and the path without symbolic
// links.
func (r *ref) view(ctx context.Context, op, name string, fn func(tree.FS, string) error) error {
	missing := &fs.PathError{Op: op, Path: name, Err: syscall.ENOENT}
	res, err := r.result(ctx)
	if err != nil {
		return err
	}
	if res == nil {
		return missing
	}
	files, done, err := res.FS(ctx)
	if err != nil {
		return err
	}
	defer done()
	resolved, err := tree.Resolve(files, name)
	if err == nil {
		err = fn(files, resolved)
	}
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsNotFound(err) {
		return missing
	}
	return err
}

// ReadFile reads a file, or a part of it.
func (r *ref) ReadFile(ctx context.Context, q gwclient.ReadRequest) (data []byte, err error) {
	err = r.view(ctx, "open", q.Filename, func(files tree.FS, name string) error {
		e, err := files.Lstat(name)
		if err != nil {
			return err
		}
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			return &fs.PathError{Op: "read", Path: q.Filename, Err: syscall.EINVAL}
		}
		f, err := files.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err = readRange(f, q.Range)
		if err != nil {
			return fmt.Errorf("read %s: %w", q.Filename, err)
		}
		return nil
	})
	return data, err
}

func readRange(f io.Reader, rng *gwclient.FileRange) ([]byte, error) {
	limit := int64(maxReadBytes)
	if rng != nil {
		if rng.Offset < 0 || rng.Length < 0 {
			return nil, fmt.Errorf("range %d+%d: %w", rng.Offset, rng.Length, errdefs.ErrInvalidArgument)
		}
		if _, err := io.CopyN(io.Discard, f, int64(rng.Offset)); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if rng.Length > 0 && int64(rng.Length) <= limit {
			return io.ReadAll(io.LimitReader(f, int64(rng.Length)))
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("more than %d MiB: %w", limit>>20, oci.ErrTooLarge)
	}
	return data, err
}

// StatFile describes a file.
func (r *ref) StatFile(ctx context.Context, q gwclient.StatRequest) (st *fstypes.Stat, err error) {
	err = r.view(ctx, "stat", q.Path, func(files tree.FS, name string) error {
		e, err := files.Lstat(name)
		if err != nil {
			return err
		}
		st = stat(e)
		return nil
	})
	return st, err
}

// ReadDir lists a directory.
func (r *ref) ReadDir(ctx context.Context, q gwclient.ReadDirRequest) (list []*fstypes.Stat, err error) {
	err = r.view(ctx, "open", q.Path, func(files tree.FS, name string) error {
		entries, err := files.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if q.IncludePattern != "" {
				ok, err := path.Match(q.IncludePattern, path.Base(e.Path))
				if err != nil {
					return fmt.Errorf("pattern %q: %w: %w", q.IncludePattern, err, errdefs.ErrInvalidArgument)
				}
				if !ok {
					continue
				}
			}
			list = append(list, stat(e))
		}
		return nil
	})
	return list, err
}

// stat is an entry as BuildKit describes files.
func stat(e *oci.Entry) *fstypes.Stat {
	return &fstypes.Stat{
		Path: path.Base(e.Path), Mode: uint32(fileMode(e.Mode)), Uid: e.UID, Gid: e.GID,
		Size: e.Size, ModTime: e.ModTime.UnixNano(), Linkname: e.Link,
		Devmajor: int64(unix.Major(e.Rdev)), Devminor: int64(unix.Minor(e.Rdev)), Xattrs: e.Xattrs,
	}
}

// fileMode turns st_mode into Go's bits, which fsutil uses.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, goBit := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= goBit
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	return m
}
