package ops

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/image"
	"den/internal/layer"
	"den/internal/oci"
	"den/internal/store"
	"den/internal/tree"
)

// localTree is a directory as it was when it was walked: names, metadata and
// digests. The content stays where it is.
type localTree struct {
	env  *Env
	dir  string
	root *localEntry
	sum  oci.Digest
}

// openLocalTree walks dir, helped by what the store remembers of an earlier
// walk.
func openLocalTree(ctx context.Context, env *Env, dir string, f localFilter) (*localTree, error) {
	dir, err := localAbs(dir)
	if err != nil {
		return nil, err
	}
	name := localCacheName(dir, f)
	known := &localCache{}
	if dt, err := env.Store.Derived(name); err == nil {
		known = parseLocalCache(dt)
	}
	root, err := walkLocal(ctx, dir, f, known)
	if err != nil {
		return nil, err
	}
	if known.stale(root) {
		// A memo that is not written costs time, not correctness.
		_ = env.Store.PutDerived(name, encodeLocalCache(root))
	}
	return &localTree{env: env, dir: dir, root: root, sum: contentOfLocal(root)}, nil
}

// Digest is that of the directory's content, without times.
func (t *localTree) Digest() oci.Digest { return t.sum }

// bytes sums up the files.
func (t *localTree) bytes() int64 {
	var n int64
	t.root.each(func(e *localEntry) {
		if e.first == "" {
			n += e.Size
		}
	})
	return n
}

// FS reads the directory. Files that were changed since it was walked are
// errors.
func (t *localTree) FS(context.Context) (tree.FS, func(), error) {
	f, err := t.open()
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}

func (t *localTree) open() (*localFS, error) {
	fd, err := unix.Open(t.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: t.dir, Err: err}
	}
	return &localFS{t: t, fd: fd}, nil
}

// Import copies the directory into the store as a layer.
func (t *localTree) Import(ctx context.Context) (image.Layer, *store.Layer, error) {
	name := "context-layer/" + t.stamp().digest().Encoded()
	if dt, err := t.env.Store.Derived(name); err == nil && oci.CheckDigest(oci.Digest(dt)) == nil {
		if l, err := t.env.Store.Layer(ctx, oci.Digest(dt)); err == nil {
			return t.env.builtLayer(l), l, nil
		}
	}
	f, err := t.open()
	if err != nil {
		return image.Layer{}, nil, err
	}
	defer f.Close()
	draft, err := t.env.Store.NewDraft(ctx)
	if err != nil {
		return image.Layer{}, nil, err
	}
	defer draft.Close()
	built, err := layer.Build(ctx, draft.FS(), f.files(), t.env.buildOptions())
	if err == nil {
		err = f.verify(t.root)
	}
	if err != nil {
		return image.Layer{}, nil, err
	}
	l, err := draft.Publish(ctx, appliedMeta(built))
	if err != nil {
		return image.Layer{}, nil, err
	}
	_ = t.env.Store.PutDerived(name, []byte(l.DiffID())) // only a memo
	return t.env.builtLayer(l), l, nil
}

// builtLayer describes a layer that this build made.
func (e *Env) builtLayer(l *store.Layer) image.Layer {
	made := time.Now().UTC()
	if e.SourceDateEpoch != nil {
		made = e.SourceDateEpoch.UTC()
	}
	return image.Layer{DiffID: l.DiffID(), SizeBytes: l.Meta().SizeBytes, Created: &made}
}

func (e *Env) buildOptions() layer.UnpackOptions {
	return layer.UnpackOptions{InUserns: e.InUserns}
}

func appliedMeta(a layer.Applied) store.LayerMeta {
	return store.LayerMeta{DiffID: a.DiffID, SizeBytes: a.SizeBytes, TreeBytes: a.TreeBytes, Entries: a.Entries}
}

// stamp covers what the layer of the directory depends on: content, names and
// times.
func (t *localTree) stamp() localSum {
	h := sha256.New()
	var b []byte
	t.root.each(func(e *localEntry) {
		b = binary.AppendUvarint(b[:0], uint64(len(e.Path)))
		b = append(b, e.Path...)
		b = binary.AppendVarint(b, e.ModTime.UnixNano())
		b = binary.AppendUvarint(b, uint64(len(e.first)))
		b = append(b, e.first...)
		b = append(b, e.digest[:]...)
		h.Write(b)
	})
	var out localSum
	h.Sum(out[:0])
	return out
}

// find returns the entry of a path, or nil.
func (t *localTree) find(p string) *localEntry {
	e := t.root
	p = strings.Trim(p, "/")
	if p == "" || p == "." {
		return e
	}
	for end := 0; end < len(p); {
		next := strings.IndexByte(p[end:], '/')
		if next < 0 {
			next = len(p)
		} else {
			next += end
		}
		i, ok := slices.BinarySearchFunc(e.children, p[:next], func(c *localEntry, want string) int {
			return strings.Compare(c.Path, want)
		})
		if !ok {
			return nil
		}
		e, end = e.children[i], next+1
	}
	return e
}

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
