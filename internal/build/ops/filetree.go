package ops

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// fileView is a file tree that file actions read. Paths are absolute and
// clean; "/" is the root. No method follows a symbolic link.
type fileView interface {
	lstat(p string) (*oci.Entry, error)
	// readDir lists a directory, sorted by name.
	readDir(p string) ([]fileNamed, error)
	// open opens a regular file; it is called when the layer is made.
	open(p string) (io.ReadCloser, error)
	// inode identifies a file that has more than one name, else it is nil.
	inode(p string, e *oci.Entry) any
	// visit prepares for all of a directory being read, and for inode of what
	// is in it; leave ends that.
	visit(p string) error
	leave()
}

// fileNamed is an entry of a directory.
type fileNamed struct {
	name string
	*oci.Entry
}

// fileTree is the file system that actions change: a tree that stays as it is,
// and in memory what differs from it. Nothing is on disk before the layer is
// made of the differences.
type fileTree struct {
	below fileView // nil is the empty tree
	root  *fileNode
	// now is when things are made that take their time from nowhere else.
	now time.Time
	// unpacked are the archives of a context that content came from.
	unpacked []*localEntry
}

// fileNode is a name that differs from the tree below.
type fileNode struct {
	// file is what has the name; nil means that it was removed.
	*fileInode
	// children are what differs in a directory.
	children map[string]*fileNode
	// merged is a directory through which the one below shows.
	merged bool
	// opaque is a new directory in place of one below.
	opaque bool
}

// fileInode is what one or more names stand for.
type fileInode struct {
	oci.Entry // without a Path
	// content opens a regular file; nil is no content.
	content func() (io.ReadCloser, error)
	// from is the file of a context that content reads, which must not change
	// meanwhile.
	from *localEntry
	// sum tells contents apart, where that can be known without reading.
	sum localSum
}

func newFileTree(below fileView, now time.Time) *fileTree {
	root := &fileNode{merged: below != nil, fileInode: &fileInode{}}
	root.Mode, root.ModTime = unix.S_IFDIR|0o755, now
	if below != nil {
		if e, err := below.lstat("/"); err == nil {
			root.Entry = *e
		}
	}
	return &fileTree{below: below, root: root, now: now}
}

func pathError(op, p string, err error) error { return &fs.PathError{Op: op, Path: p, Err: err} }

// isNotExist is os.IsNotExist for every kind of view.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) || errdefs.IsNotFound(err) }

// find returns p's node, or whether p is to be looked for below.
func (t *fileTree) find(p string) (n *fileNode, below bool, err error) {
	n = t.root
	for rest := strings.Trim(p, "/"); rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if n.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, false, syscall.ENOTDIR
		}
		c := n.children[name]
		switch {
		case c == nil && n.merged:
			return nil, true, nil
		case c == nil || c.fileInode == nil:
			return nil, false, syscall.ENOENT
		}
		n = c
	}
	return n, false, nil
}

func (t *fileTree) lstat(p string) (*oci.Entry, error) {
	n, below, err := t.find(p)
	switch {
	case err != nil:
		return nil, pathError("lstat", p, err)
	case below:
		return t.below.lstat(p)
	}
	return &n.Entry, nil
}

func (t *fileTree) isDir(p string) bool {
	e, err := t.lstat(p)
	return err == nil && isDir(e)
}

func isDir(e *oci.Entry) bool { return e.Mode&unix.S_IFMT == unix.S_IFDIR }

func (t *fileTree) readDir(p string) ([]fileNamed, error) {
	n, below, err := t.find(p)
	switch {
	case err != nil:
		return nil, pathError("open", p, err)
	case below:
		return t.below.readDir(p)
	case !isDir(&n.Entry):
		return nil, pathError("open", p, syscall.ENOTDIR)
	}
	var out []fileNamed
	if n.merged {
		under, err := t.below.readDir(p)
		if err != nil {
			return nil, err
		}
		for _, e := range under {
			if n.children[e.name] == nil {
				out = append(out, e)
			}
		}
	}
	for name, c := range n.children {
		if c.fileInode != nil {
			out = append(out, fileNamed{name, &c.Entry})
		}
	}
	slices.SortFunc(out, func(a, b fileNamed) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (t *fileTree) open(p string) (io.ReadCloser, error) {
	n, below, err := t.find(p)
	switch {
	case err != nil:
		return nil, pathError("open", p, err)
	case below:
		return t.below.open(p)
	case n.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, pathError("open", p, syscall.EINVAL)
	case n.content == nil:
		return io.NopCloser(strings.NewReader("")), nil
	}
	return n.content()
}

func (t *fileTree) inode(p string, e *oci.Entry) any {
	n, below, err := t.find(p)
	switch {
	case err != nil:
		return nil
	case below:
		return t.below.inode(p, e)
	}
	return n.fileInode
}

func (t *fileTree) visit(p string) error {
	if t.below == nil {
		return nil
	}
	if _, err := t.below.lstat(p); err != nil {
		return nil // nothing of it is below
	}
	return t.below.visit(p)
}

func (t *fileTree) leave() {
	if t.below != nil {
		t.below.leave()
	}
}

// raise makes p, which must exist, a node: as it is below until it is changed,
// with its parents.
func (t *fileTree) raise(p string) (*fileNode, error) {
	n, done := t.root, "/"
	for rest := strings.Trim(p, "/"); rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		done = path.Join(done, name)
		if !isDir(&n.Entry) {
			return nil, pathError("lstat", p, syscall.ENOTDIR)
		}
		c := n.children[name]
		if c == nil && n.merged {
			e, err := t.below.lstat(done)
			if err != nil {
				return nil, err
			}
			c = t.copyUp(done, e)
			n.set(name, c)
		}
		if c == nil || c.fileInode == nil {
			return nil, pathError("lstat", p, syscall.ENOENT)
		}
		n = c
	}
	return n, nil
}

func (t *fileTree) copyUp(p string, e *oci.Entry) *fileNode {
	n := &fileNode{fileInode: &fileInode{Entry: *e}, merged: isDir(e)}
	n.Xattrs = maps.Clone(e.Xattrs)
	n.Hardlink = false
	if e.Mode&unix.S_IFMT == unix.S_IFREG {
		n.Link = ""
		n.content = func() (io.ReadCloser, error) { return t.below.open(p) }
	}
	return n
}

func (n *fileNode) set(name string, c *fileNode) {
	if n.children == nil {
		n.children = map[string]*fileNode{}
	}
	n.children[name] = c
}

// put gives the name p, whose parent must be a directory and which must not
// exist, to file.
func (t *fileTree) put(op, p string, file *fileInode) error {
	if _, err := t.lstat(p); err == nil {
		return pathError(op, p, syscall.EEXIST)
	}
	dir, name := path.Split(p)
	parent, err := t.raise(dir)
	if err != nil || !isDir(&parent.Entry) {
		return pathError(op, p, fileErrno(err))
	}
	n := &fileNode{fileInode: file}
	if isDir(&file.Entry) && parent.merged {
		if e, err := t.below.lstat(p); err == nil {
			n.opaque = isDir(e)
		}
	}
	parent.set(name, n)
	return nil
}

// fileErrno is the errno of err; nil is ENOTDIR.
func fileErrno(err error) error {
	var errno syscall.Errno
	switch {
	case err == nil:
		return syscall.ENOTDIR
	case errors.As(err, &errno):
		return errno
	case isNotExist(err):
		return syscall.ENOENT
	}
	return err
}

// remove removes p with all below it. What does not exist is no error.
func (t *fileTree) remove(p string) error {
	if p == "/" {
		return pathError("unlinkat", p, syscall.EBUSY)
	}
	if _, err := t.lstat(p); err != nil {
		if isNotExist(err) || errors.Is(err, syscall.ENOTDIR) {
			return nil
		}
		return err
	}
	dir, name := path.Split(p)
	parent, err := t.raise(dir)
	if err != nil {
		return err
	}
	delete(parent.children, name)
	if !parent.merged {
		return nil
	}
	_, err = t.below.lstat(p)
	if err != nil && !isNotExist(err) {
		return err
	}
	if err == nil {
		parent.set(name, &fileNode{})
	}
	return nil
}
