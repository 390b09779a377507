package ops

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"path"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver/pb"
	mode "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"
)

// actionTime is an action's own time; nil is none.
func actionTime(nanos int64) *time.Time {
	if nanos == -1 {
		return nil
	}
	t := time.Unix(nanos/1e9, nanos%1e9)
	return &t
}

// doMkdir makes a directory. One that exists is left as it is.
func (t *fileTree) doMkdir(a *pb.FileActionMkDir, owner *fileOwner) error {
	p, err := rootPath(t, path.Join("/", a.Path))
	if err != nil {
		return err
	}
	perm := uint32(a.Mode) & 0o777
	if a.MakeParents {
		return t.mkdirAll(p, perm, owner, actionTime(a.Timestamp))
	}
	if _, err := t.lstat(p); err == nil {
		return nil
	}
	f, err := t.mkdir(p, perm)
	if err != nil {
		return err
	}
	f.own(owner, actionTime(a.Timestamp))
	return nil
}

// doMkfile makes a file in place of whatever has the name, unless that is a
// directory.
func (t *fileTree) doMkfile(a *pb.FileActionMkFile, owner *fileOwner) error {
	p, err := rootPath(t, path.Join("/", a.Path))
	if err != nil {
		return err
	}
	if t.isDir(p) {
		return pathError("mkfile", p, syscall.EISDIR)
	}
	if dir := path.Dir(p); !t.isDir(dir) {
		_, err := t.lstat(dir)
		return pathError("open", p, fileErrno(err))
	}
	if err := t.remove(p); err != nil {
		return err
	}
	f := t.newFile(p, unix.S_IFREG|uint32(a.Mode)&0o777)
	data := a.Data
	f.Size, f.sum = int64(len(data)), sha256.Sum256(data)
	f.content = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	f.own(owner, actionTime(a.Timestamp))
	return t.put("open", p, f)
}

// doSymlink makes a symbolic link where nothing is yet.
func (t *fileTree) doSymlink(a *pb.FileActionSymlink, owner *fileOwner) error {
	p, err := rootPath(t, path.Join("/", a.Newpath))
	if err != nil {
		return err
	}
	if a.Oldpath == "" {
		return pathError("symlink", p, syscall.ENOENT)
	}
	f := t.newFile(p, unix.S_IFLNK|0o777)
	f.Link = a.Oldpath
	f.own(owner, actionTime(a.Timestamp))
	return t.put("symlink", p, f)
}

// doRm removes what a path or a pattern names.
func (t *fileTree) doRm(a *pb.FileActionRm) error {
	if !a.AllowWildcard {
		return t.rm(a.Path, a.AllowNotFound)
	}
	matches, err := resolveWildcards(t, cleanFilePath(a.Path), false)
	if err != nil {
		return err
	}
	for _, m := range matches {
		if err := t.rm(m, a.AllowNotFound); err != nil {
			return err
		}
	}
	return nil
}

func (t *fileTree) rm(p string, allowNotFound bool) error {
	dir, base := path.Split(path.Join("/", p))
	if base == "" {
		return fmt.Errorf("rm %.200q: the root cannot be removed: %w", p, errdefs.ErrInvalidArgument)
	}
	dir, err := rootPath(t, dir)
	if err != nil {
		return err
	}
	p = path.Join(dir, base)
	if !allowNotFound {
		// A link that leads nowhere is not found, either.
		real, err := rootPath(t, p)
		if err != nil {
			return err
		}
		if _, err := t.lstat(real); err != nil {
			return pathError("stat", p, fileErrno(err))
		}
	}
	return t.remove(p)
}

// doCopy copies from src, and unpacks what it finds of archives if asked to.
func (t *fileTree) doCopy(ctx context.Context, a *pb.FileActionCopy, src fileView, owner *fileOwner, spool *fileSpool) error {
	from, to := cleanFilePath(a.Src), cleanFilePath(a.Dest)
	if !a.CreateDestPath {
		p, err := rootPath(t, path.Join("/", a.Dest))
		if err != nil {
			return err
		}
		if _, err := t.lstat(path.Dir(p)); err != nil {
			return fmt.Errorf("destination %s: %w", a.Dest, err)
		}
	}
	proto, err := newFileCopy(a, owner)
	if err != nil {
		return err
	}
	matches := []string{from}
	if a.AllowWildcard {
		if matches, err = resolveWildcards(src, from, a.FollowSymlink); err != nil {
			return err
		}
		if len(matches) == 0 && !a.AllowEmptyWildcard {
			return fmt.Errorf("%s: %w", from, errdefs.ErrNotFound)
		}
	}
	for _, m := range matches {
		if a.AttemptUnpackDockerCompatibility {
			done, err := t.unpack(ctx, src, m, to, fileUnpack{owner: owner, utime: actionTime(a.Timestamp), spool: spool})
			if err != nil {
				return fmt.Errorf("unpack %s: %w", m, err)
			}
			if done {
				continue
			}
		}
		c := *proto
		c.src, c.dst = src, t
		if err := c.run(ctx, m, to); err != nil {
			return err
		}
	}
	return nil
}

// newFileCopy takes over what an action says about how to copy.
func newFileCopy(a *pb.FileActionCopy, owner *fileOwner) (*fileCopy, error) {
	c := &fileCopy{
		owner: owner, utime: actionTime(a.Timestamp),
		contentsOnly: a.DirCopyContents, follow: a.FollowSymlink, replace: a.AlwaysReplaceExistingDestPaths,
	}
	var err error
	if a.ModeStr != "" {
		set, err := mode.ParseWithUmask(a.ModeStr, 0)
		if err != nil {
			return nil, fmt.Errorf("mode %.80q: %w: %w", a.ModeStr, err, errdefs.ErrInvalidArgument)
		}
		c.modeSet = &set
	} else if a.Mode != -1 {
		perm := uint32(a.Mode)
		c.perm = &perm
	}
	if c.include, err = contentPatterns("include", a.IncludePatterns); err != nil {
		return nil, err
	}
	c.exclude, err = contentPatterns("exclude", a.ExcludePatterns)
	return c, err
}
