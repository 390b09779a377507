package ops

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
	"den/internal/tree"
)

// localFS is an open localTree.
type localFS struct {
	t  *localTree
	fd int
}

var _ tree.FS = (*localFS)(nil)

func (f *localFS) entry(op, p string) (*localEntry, error) {
	if e := f.t.find(p); e != nil {
		return e, nil
	}
	return nil, &fs.PathError{Op: op, Path: p, Err: syscall.ENOENT}
}

// Lstat describes what path names.
func (f *localFS) Lstat(p string) (*oci.Entry, error) {
	e, err := f.entry("lstat", p)
	if err != nil {
		return nil, err
	}
	return &e.Entry, nil
}

// ReadDir lists a directory.
func (f *localFS) ReadDir(p string) ([]*oci.Entry, error) {
	e, err := f.entry("readdir", p)
	if err != nil {
		return nil, err
	}
	if !e.isDir() {
		return nil, &fs.PathError{Op: "readdir", Path: p, Err: syscall.ENOTDIR}
	}
	out := make([]*oci.Entry, len(e.children))
	for i, c := range e.children {
		out[i] = &c.Entry
	}
	return out, nil
}

// Readlink returns the target of a symbolic link.
func (f *localFS) Readlink(p string) (string, error) {
	e, err := f.entry("readlink", p)
	if err != nil {
		return "", err
	}
	if e.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", &fs.PathError{Op: "readlink", Path: p, Err: syscall.EINVAL}
	}
	return e.Link, nil
}

// Open opens a regular file, which must be as it was when it was walked.
func (f *localFS) Open(p string) (io.ReadCloser, error) {
	e, err := f.entry("open", p)
	if err != nil {
		return nil, err
	}
	if !e.isRegular() {
		return nil, &fs.PathError{Op: "open", Path: p, Err: syscall.EINVAL}
	}
	fd, err := openBelow(f.fd, e.Path, 0)
	if err != nil {
		return nil, err
	}
	st, err := statOpen(fd, e.Path)
	if err == nil && !st.same(e.stat) {
		err = &fs.PathError{Op: "read", Path: e.Path, Err: errLocalChanged}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), e.Path)
	if !e.racy {
		return file, nil
	}
	h := sha256.New()
	h.Write(appendTarsum(nil, &e.Entry))
	return &localChecked{file: file, e: e, sum: h}, nil
}

// Close ends the reading.
func (f *localFS) Close() error {
	if f.fd < 0 {
		return nil
	}
	err := unix.Close(f.fd)
	f.fd = -1
	return err
}

// verify says whether the files from root on are still what they were. Reading
// a file takes a while; what was copied must be what was hashed.
func (f *localFS) verify(root *localEntry) error {
	var err error
	root.each(func(e *localEntry) {
		if err == nil && e.isRegular() {
			err = f.verifyFile(e)
		}
	})
	return err
}

func (f *localFS) verifyFile(e *localEntry) error {
	var st unix.Stat_t
	err := unix.Fstatat(f.fd, e.Path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "lstat", Path: e.Path, Err: err}
	}
	if err != nil || !newLocalStat(&st).same(e.stat) {
		return &fs.PathError{Op: "read", Path: e.Path, Err: errLocalChanged}
	}
	return nil
}

// verifyOwn is verifyFile for an entry that may be of another directory.
func (f *localFS) verifyOwn(e *localEntry) error {
	if f.t.find(e.Path) != e {
		return nil
	}
	return f.verifyFile(e)
}

// files lists the directory for a layer.
func (f *localFS) files() iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		var list func(e *localEntry) bool
		list = func(e *localEntry) bool {
			for _, c := range e.children {
				file := layer.File{Entry: c.Entry}
				if c.first != "" {
					file.Hardlink, file.Link, file.Size = true, c.first, 0
				} else if c.isRegular() {
					file.Open = func() (io.ReadCloser, error) { return f.Open(c.Path) }
				}
				if !yield(file, nil) || !list(c) {
					return false
				}
			}
			return true
		}
		list(f.t.root)
	}
}

// localChecked reads a file whose times cannot vouch for it, and so compares
// what it read with the digest.
type localChecked struct {
	file *os.File
	e    *localEntry
	sum  hash.Hash
}

func (c *localChecked) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	c.sum.Write(b[:n])
	if err == io.EOF {
		var got localSum
		c.sum.Sum(got[:0])
		if got != c.e.digest {
			return n, &fs.PathError{Op: "read", Path: c.e.Path, Err: errLocalChanged}
		}
	}
	return n, err
}

func (c *localChecked) Close() error { return c.file.Close() }
