package ops

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
)

// fileMaxUnpacked bounds the entries of an archive that is unpacked, which are
// kept in memory until the layer is made.
const fileMaxUnpacked = 2 << 20

// fileUnpack is how an archive is unpacked into a tree, with the rules of
// moby/go-archive in a chroot of the destination.
type fileUnpack struct {
	owner *fileOwner // nil keeps the archive's
	utime *time.Time // of directories made for the destination
	spool *fileSpool

	t       *fileTree
	root    string // the destination, that nothing gets out of
	entries int
}

// unpack unpacks src into dst if it is an archive, and says whether it is.
func (t *fileTree) unpack(ctx context.Context, src fileView, from, dst string, u fileUnpack) (bool, error) {
	from, err := rootPath(src, from)
	if err != nil {
		return false, err
	}
	if !isArchive(src, from) {
		return false, nil
	}
	u.t = t
	if u.root, err = rootPath(t, dst); err != nil {
		return false, err
	}
	if err := t.mkdirAll(u.root, defaultDirPerm, u.owner, u.utime); err != nil {
		return false, err
	}
	if e := viewEntry(src, from); e != nil {
		t.unpacked = append(t.unpacked, e)
	}
	f, err := src.open(from)
	if err != nil {
		return false, err
	}
	defer f.Close()
	plain, _, err := layer.Decompress(f)
	if err != nil {
		return false, err
	}
	defer plain.Close()
	return true, u.all(ctx, layer.NewArchiveReader(plain))
}

// isArchive says whether p is a regular file that begins like a tar, packed or
// not.
func isArchive(v fileView, p string) bool {
	e, err := v.lstat(p)
	if err != nil || e.Mode&unix.S_IFMT != unix.S_IFREG || e.Size == 0 {
		return false
	}
	f, err := v.open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	plain, _, err := layer.Decompress(f)
	if err != nil {
		return false
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil
}

func (u *fileUnpack) all(ctx context.Context, r *layer.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if u.entries++; u.entries > fileMaxUnpacked {
			return fmt.Errorf("more than %d entries: %w", fileMaxUnpacked, errdefs.ErrInvalidArgument)
		}
		if e.Path == "." {
			continue // the destination keeps what it has
		}
		if err := u.entry(ctx, e, r); err != nil {
			return fmt.Errorf("%.200s: %w", e.Path, err)
		}
	}
}

// entry makes what one entry describes, in place of what is there.
func (u *fileUnpack) entry(ctx context.Context, e *oci.Entry, r io.Reader) error {
	dir, err := u.parents(path.Dir(e.Path))
	if err != nil {
		return err
	}
	p := path.Join(dir, path.Base(e.Path))
	old, err := u.t.lstat(p)
	if err == nil && isDir(old) && isDir(e) && !e.Hardlink {
		n, err := u.t.raise(p)
		if err != nil {
			return err
		}
		u.setInfo(n.fileInode, e)
		return nil
	}
	if err == nil {
		if err := u.t.remove(p); err != nil {
			return err
		}
	}
	f, err := u.make(ctx, e, r)
	if err != nil {
		return err
	}
	u.setInfo(f, e)
	return u.t.put("open", p, f)
}

// make returns the inode of an entry: a new one, or for a hard link that of
// its target.
func (u *fileUnpack) make(ctx context.Context, e *oci.Entry, r io.Reader) (*fileInode, error) {
	if e.Hardlink {
		dir, err := u.resolve(path.Dir(e.Link))
		if err != nil {
			return nil, err
		}
		n, err := u.t.raise(path.Join(dir, path.Base(e.Link)))
		if err != nil {
			return nil, err
		}
		if isDir(&n.Entry) {
			return nil, pathError("link", e.Link, syscall.EPERM)
		}
		return n.fileInode, nil
	}
	f := &fileInode{}
	f.Mode, f.Link, f.Rdev = e.Mode, e.Link, e.Rdev
	if e.Mode&unix.S_IFMT != unix.S_IFREG {
		return f, nil
	}
	var err error
	f.Size = e.Size
	f.content, err = u.spool.add(ctx, r, e.Size)
	return f, err
}

func (u *fileUnpack) setInfo(f *fileInode, e *oci.Entry) {
	f.UID, f.GID = e.UID, e.GID
	if u.owner != nil {
		f.UID, f.GID = u.owner.uid, u.owner.gid
	}
	for k, v := range e.Xattrs {
		if f.Xattrs == nil {
			f.Xattrs = map[string][]byte{}
		}
		f.Xattrs[k] = v
	}
	kind := f.Mode & unix.S_IFMT
	if e.Hardlink && kind == unix.S_IFLNK {
		return
	}
	if kind != unix.S_IFLNK {
		f.Mode = kind | e.Mode&0o7777
	}
	if f.ModTime = e.ModTime; f.ModTime.Unix() < 0 {
		f.ModTime = time.Unix(0, 0)
	}
}

// parents makes the directories of p and returns where they really are.
func (u *fileUnpack) parents(p string) (string, error) {
	if p == "." {
		return u.root, nil
	}
	real := u.root
	done := "."
	for name := range strings.SplitSeq(p, "/") {
		done = path.Join(done, name)
		next := path.Join(real, name)
		e, err := u.t.lstat(next)
		switch {
		case isNotExist(err):
			if _, err := u.t.mkdir(next, defaultDirPerm); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		case isLink(e):
			if next, err = u.resolve(done); err != nil {
				return "", err
			}
			if e, err = u.t.lstat(next); err != nil {
				return "", err
			}
		}
		if e != nil && !isDir(e) {
			return "", pathError("mkdir", next, syscall.ENOTDIR)
		}
		real = next
	}
	return real, nil
}

// resolve follows the symbolic links of p as the kernel would with the
// destination as its root.
func (u *fileUnpack) resolve(p string) (string, error) {
	real, rest, links := u.root, p, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if real != u.root {
				real = path.Dir(real)
			}
			continue
		}
		next := path.Join(real, name)
		e, err := u.t.lstat(next)
		if err != nil {
			return "", err
		}
		if !isLink(e) {
			real = next
			continue
		}
		if links++; links > fileMaxLinks {
			return "", pathError("lstat", p, syscall.ELOOP)
		}
		rest = e.Link + "/" + rest
		if path.IsAbs(e.Link) {
			real = u.root
		}
	}
	return real, nil
}

// fileSpool keeps the content of unpacked files until the layer is made, in
// one file without a name.
type fileSpool struct {
	dir  func(context.Context) (string, error)
	file *os.File
	size int64
}

// add takes size bytes of r.
func (s *fileSpool) add(ctx context.Context, r io.Reader, size int64) (func() (io.ReadCloser, error), error) {
	if size == 0 {
		return nil, nil
	}
	if s.file == nil {
		if err := s.open(ctx); err != nil {
			return nil, err
		}
	}
	start := s.size
	n, err := io.Copy(io.NewOffsetWriter(s.file, start), readerWithContext{ctx, io.LimitReader(r, size)})
	s.size += n
	if err != nil {
		return nil, err
	}
	if n != size {
		return nil, io.ErrUnexpectedEOF
	}
	return func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(s.file, start, size)), nil }, nil
}

func (s *fileSpool) open(ctx context.Context) error {
	dir, err := s.dir(ctx)
	if err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		s.file = os.NewFile(uintptr(fd), dir)
		return nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return pathError("open", dir, err)
	}
	// Not every file system has O_TMPFILE.
	if s.file, err = os.CreateTemp(dir, "unpack-"); err != nil {
		return err
	}
	return os.Remove(s.file.Name())
}

func (s *fileSpool) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// readerWithContext ends a long copy when nobody wants it any more.
type readerWithContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWithContext) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}
