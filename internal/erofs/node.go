package erofs

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

// node is an inode in the making. A layer may have millions: what few have is
// behind pointers.
type node struct {
	mode     uint16
	whiteout bool
	uid, gid uint32
	nanos    uint32
	nlink    uint32
	seconds  int64
	size     int64
	// at is where the content begins in the image; for a directory its first
	// block, once that is known.
	at    int64
	nid   uint64
	extra *extra
	dir   *directory
}

// extra is what few inodes have.
type extra struct {
	link   string
	rdev   uint64
	xattrs map[string][]byte
}

// directory is what directories have beside an inode.
type directory struct {
	parent *node // nil for the root
	name   string
	depth  int
	opaque bool
	kids   map[string]*node
	names  []string // of kids, sorted, once all are there
}

func (n *node) kind() uint32 { return uint32(n.mode) & unix.S_IFMT }
func (n *node) isDir() bool  { return n.dir != nil }
func (n *node) isDevice() bool {
	return !n.whiteout && (n.kind() == unix.S_IFCHR || n.kind() == unix.S_IFBLK)
}
func (n *node) modTime() time.Time { return time.Unix(n.seconds, int64(n.nanos)) }

func (n *node) link() string {
	if n.extra == nil {
		return ""
	}
	return n.extra.link
}

func (n *node) rdev() uint64 {
	if n.extra == nil {
		return 0
	}
	return n.extra.rdev
}

func (n *node) xattrs() map[string][]byte {
	if n.extra == nil {
		return nil
	}
	return n.extra.xattrs
}

// newNode makes the inode that e describes.
func newNode(e *oci.Entry) *node {
	n := &node{mode: uint16(e.Mode)}
	if n.kind() == unix.S_IFLNK {
		n.mode = unix.S_IFLNK | 0o777
		n.extra = &extra{link: e.Link}
		n.size = int64(len(e.Link))
	}
	if n.isDevice() {
		n.extra = &extra{rdev: e.Rdev}
	}
	n.dress(e)
	return n
}

// dress gives a node an entry's owner, time and attributes, in addition to the
// attributes that it has.
func (n *node) dress(e *oci.Entry) {
	n.uid, n.gid = e.UID, e.GID
	n.seconds, n.nanos = 0, 0
	if !e.ModTime.IsZero() {
		n.seconds, n.nanos = e.ModTime.Unix(), uint32(e.ModTime.Nanosecond())
	}
	user := n.kind() == unix.S_IFREG || n.kind() == unix.S_IFDIR // the kernel allows user.* only there
	for name, value := range e.Xattrs {
		if !user && name != sys.CapabilityAttr {
			continue
		}
		if n.extra == nil {
			n.extra = &extra{}
		}
		if n.extra.xattrs == nil {
			n.extra.xattrs = map[string][]byte{}
		}
		n.extra.xattrs[name] = slices.Clone(value)
	}
}

// entry describes the node as it will be read.
func (n *node) entry(path string) oci.Entry {
	e := oci.Entry{
		Path: path, Mode: uint32(n.mode), UID: n.uid, GID: n.gid, ModTime: n.modTime(),
		Link: n.link(), Rdev: n.rdev(), Xattrs: n.xattrs(),
	}
	if n.kind() == unix.S_IFREG {
		e.Size = n.size
	}
	return e
}

func newWhiteout() *node { return &node{mode: unix.S_IFCHR, whiteout: true} }

// newDir makes a directory below parent.
func newDir(e *oci.Entry, parent *node, name string) *node {
	n := newNode(e)
	n.mode = unix.S_IFDIR | n.mode&0o7777
	n.dir = &directory{parent: parent, name: name, opaque: e.Opaque}
	if parent != nil {
		n.dir.depth = parent.dir.depth + 1
	}
	return n
}

// put gives a child a name, in the place of what had it.
func (d *directory) put(name string, n *node) {
	if d.kids == nil {
		d.kids = map[string]*node{}
	}
	d.kids[name] = n
}

// path is where a directory is, "" for the root.
func (n *node) path() string {
	var parts []string
	size := 0
	for ; n.dir.parent != nil; n = n.dir.parent {
		parts = append(parts, n.dir.name)
		size += len(n.dir.name) + 1
	}
	out := make([]byte, 0, size)
	for _, part := range slices.Backward(parts) {
		if len(out) > 0 {
			out = append(out, '/')
		}
		out = append(out, part...)
	}
	return string(out)
}
