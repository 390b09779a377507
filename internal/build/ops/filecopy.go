package ops

import (
	"context"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/patternmatcher"
	mode "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// fileCopy is one source that is copied, with the rules of fsutil/copy.Copy:
// its steps are in the same order, because what is an error and which name
// wins depends on it.
type fileCopy struct {
	src fileView
	dst *fileTree

	owner   *fileOwner // nil keeps the source's
	utime   *time.Time // nil keeps the source's
	perm    *uint32    // nil keeps the source's; all 07777 bits
	modeSet *mode.Set  // instead of perm
	// contentsOnly copies what is in a source directory, not the directory.
	contentsOnly bool
	follow       bool
	// replace lets a source take the place of whatever is in its way.
	replace          bool
	include, exclude *patternmatcher.PatternMatcher

	inodes  map[any]*fileInode
	parents []fileCopyParent
}

// fileCopyParent is a directory of the source that is being copied; it is made
// when something in it is included.
type fileCopyParent struct {
	src, dst string
	copied   bool
}

// fileCopyStep is one path to copy.
type fileCopyStep struct {
	src, dst string
	rel      string // below the source, "" for itself
	// overwrite gives an existing directory the source's metadata.
	overwrite        bool
	include, exclude patternmatcher.MatchInfo
}

// defaultDirPerm is that of directories made on the way.
const defaultDirPerm = 0o755

func (c *fileCopy) dirPerm() uint32 {
	if c.perm != nil {
		return *c.perm & 0o777
	}
	return defaultDirPerm
}

// run copies src to dst, which is as cleanFilePath left it.
func (c *fileCopy) run(ctx context.Context, src, dst string) error {
	ensure := dst
	if dir, base := path.Split(dst); base != "" && base != "." {
		ensure = dir
	}
	if ensure != "" {
		p, err := rootPath(c.dst, ensure)
		if err != nil {
			return err
		}
		if err := c.dst.mkdirAll(p, c.dirPerm(), c.owner, c.utime); err != nil {
			return err
		}
	}
	target, err := rootPath(c.dst, path.Clean(dst))
	if err != nil {
		return err
	}
	from, err := rootPathParent(c.src, src, c.follow)
	if err != nil {
		return err
	}
	if target, err = c.prepare(from, src, target); err != nil {
		return err
	}
	c.inodes = map[any]*fileInode{}
	if e, err := c.src.lstat(from); err == nil && isDir(e) {
		if err := c.src.visit(from); err != nil {
			return err
		}
		defer c.src.leave()
	}
	return c.copy(ctx, fileCopyStep{src: from, dst: target})
}

// prepare makes the directory that the copy goes into and returns the name
// that it gets.
func (c *fileCopy) prepare(from, src, dst string) (string, error) {
	srcEntry, err := c.src.lstat(from)
	if err != nil {
		return "", err
	}
	dstEntry, err := c.dst.lstat(dst)
	if err != nil && !isNotExist(err) {
		return "", fmt.Errorf("destination: %w", err)
	}
	exists := err == nil
	if !c.contentsOnly && isDir(srcEntry) && exists || !isDir(srcEntry) && exists && isDir(dstEntry) {
		dst = path.Join(dst, path.Base(src))
	}
	dir := path.Dir(dst)
	if c.contentsOnly && isDir(srcEntry) && !exists {
		dir = dst
	}
	return dst, c.dst.mkdirAll(dir, c.dirPerm(), c.owner, c.utime)
}

// copy copies one path and what is below it.
func (c *fileCopy) copy(ctx context.Context, s fileCopyStep) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := c.src.lstat(s.src)
	if err != nil {
		return err
	}
	return c.copyEntry(ctx, s, e)
}

func (c *fileCopy) copyEntry(ctx context.Context, s fileCopyStep, e *oci.Entry) error {
	include, excluded, err := c.match(&s)
	if err != nil || !include && !isDir(e) {
		return err
	}
	existing, err := c.dst.lstat(s.dst)
	if err != nil && !isNotExist(err) {
		return err
	}
	if include {
		if c.replace && existing != nil && !(isDir(e) && isDir(existing)) {
			if err := c.dst.remove(s.dst); err != nil {
				return err
			}
			existing = nil
		}
		if err := c.makeParents(s.overwrite); err != nil {
			return err
		}
	}
	if isDir(e) {
		return c.copyDir(ctx, s, e, include, excluded)
	}
	if existing != nil {
		if isDir(existing) {
			return fmt.Errorf("cannot replace to directory %s with file: %w", s.dst, errdefs.ErrInvalidArgument)
		}
		if err := c.dst.remove(s.dst); err != nil {
			return err
		}
	}
	return c.copyFile(s, e)
}

// match applies the patterns to a path below the source.
func (c *fileCopy) match(s *fileCopyStep) (include, excluded bool, err error) {
	include = true
	if s.rel == "" {
		return include, excluded, nil
	}
	if c.include != nil {
		if include, s.include, err = c.include.MatchesUsingParentResults(s.rel, s.include); err != nil {
			return false, false, fmt.Errorf("include patterns: %w", err)
		}
	}
	if c.exclude != nil {
		if excluded, s.exclude, err = c.exclude.MatchesUsingParentResults(s.rel, s.exclude); err != nil {
			return false, false, fmt.Errorf("exclude patterns: %w", err)
		}
	}
	return include && !excluded, excluded, nil
}

// copyFile copies what is not a directory to a name that is free.
func (c *fileCopy) copyFile(s fileCopyStep, e *oci.Entry) error {
	f := &fileInode{}
	f.Mode = e.Mode
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		id := c.src.inode(s.src, e)
		if id != nil && c.inodes[id] != nil {
			return c.dst.put("link", s.dst, c.inodes[id])
		}
		if id != nil {
			c.inodes[id] = f
		}
		src := s.src
		f.Size = e.Size
		if f.from = viewEntry(c.src, src); f.from != nil {
			f.sum = f.from.digest
		}
		f.content = func() (io.ReadCloser, error) { return c.src.open(src) }
	case unix.S_IFLNK:
		f.Link = e.Link
	case unix.S_IFSOCK:
		// A layer cannot hold a socket; BuildKit puts an empty file there.
		f.Mode = unix.S_IFREG | e.Mode&0o7777
	default:
		f.Rdev = e.Rdev
	}
	c.setInfo(f, e)
	return c.dst.put("open", s.dst, f)
}

// copyDir copies a directory. It is made at once if it is included itself,
// else when something below it is.
func (c *fileCopy) copyDir(ctx context.Context, s fileCopyStep, e *oci.Entry, include, excluded bool) error {
	created := false
	if include {
		var err error
		if created, err = c.makeDir(s.dst, e); err != nil {
			return err
		}
	}
	c.parents = append(c.parents, fileCopyParent{src: s.src, dst: s.dst, copied: include})
	defer func() { c.parents = c.parents[:len(c.parents)-1] }()

	if !excluded || c.exclude.Exclusions() {
		if err := c.copyChildren(ctx, s); err != nil {
			return err
		}
	}
	if !include {
		return nil
	}
	n, err := c.dst.raise(s.dst)
	if err != nil {
		return err
	}
	if created || s.overwrite {
		c.setInfo(n.fileInode, e)
	} else {
		c.setTime(n.fileInode, e) // only the time, BuildKit's way
	}
	return nil
}

func (c *fileCopy) copyChildren(ctx context.Context, s fileCopyStep) error {
	children, err := c.src.readDir(s.src)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := ctx.Err(); err != nil {
			return err
		}
		step := fileCopyStep{
			src: path.Join(s.src, child.name), dst: path.Join(s.dst, child.name), rel: path.Join(s.rel, child.name),
			overwrite: true, include: s.include, exclude: s.exclude,
		}
		if err := c.copyEntry(ctx, step, child.Entry); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes sure that dst is a directory and says whether it made it.
func (c *fileCopy) makeDir(dst string, e *oci.Entry) (bool, error) {
	existing, err := c.dst.lstat(dst)
	switch {
	case isNotExist(err):
		_, err := c.dst.mkdir(dst, e.Mode&0o7777)
		return true, err
	case err != nil:
		return false, err
	case !isDir(existing):
		return false, fmt.Errorf("cannot copy to non-directory: %s: %w", dst, errdefs.ErrInvalidArgument)
	}
	return false, nil
}

// makeParents makes the source's directories that lead to something included.
func (c *fileCopy) makeParents(overwrite bool) error {
	for i, p := range c.parents {
		if p.copied {
			continue
		}
		e, err := c.src.lstat(p.src)
		if err != nil {
			return err
		}
		created, err := c.makeDir(p.dst, e)
		if err != nil {
			return err
		}
		c.parents[i].copied = true
		if !created && !overwrite {
			continue
		}
		n, err := c.dst.raise(p.dst)
		if err != nil {
			return err
		}
		n.Mode = unix.S_IFDIR | e.Mode&0o7777
		if created {
			c.setInfo(n.fileInode, e)
		}
	}
	return nil
}

// setInfo gives f the owner, mode, time and attributes of e, or those that the
// copy asks for.
func (c *fileCopy) setInfo(f *fileInode, e *oci.Entry) {
	f.UID, f.GID = e.UID, e.GID
	if c.owner != nil {
		f.UID, f.GID = c.owner.uid, c.owner.gid
	}
	if kind := f.Mode & unix.S_IFMT; kind != unix.S_IFLNK {
		perm := e.Mode & 0o7777
		switch {
		case c.modeSet != nil:
			perm = unixPerm(c.modeSet.Apply(goMode(e.Mode)))
		case c.perm != nil:
			perm = *c.perm & 0o7777
		}
		f.Mode = kind | perm
	}
	c.setTime(f, e)
	for k, v := range e.Xattrs {
		if f.Xattrs == nil {
			f.Xattrs = map[string][]byte{}
		}
		f.Xattrs[k] = v
	}
}

func (c *fileCopy) setTime(f *fileInode, e *oci.Entry) {
	f.ModTime = e.ModTime
	if c.utime != nil {
		f.ModTime = *c.utime
	}
}
