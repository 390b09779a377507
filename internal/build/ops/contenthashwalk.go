package ops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/tree"
)

// contentMaxLinks bounds the symbolic links on the way to one path.
const contentMaxLinks = 255

// contentTree is what a content hash is made of. Paths are absolute; the root
// is "".
type contentTree interface {
	// lookup returns nil for what is not there.
	lookup(p string) (*oci.Entry, error)
	// list returns the children of a directory, sorted.
	list(p string) ([]*oci.Entry, error)
	// hash digests each entry by itself: header, and data of a regular file.
	hash(ctx context.Context, entries []*oci.Entry) ([]localSum, error)
}

// contentSelect digests one selection.
func contentSelect(ctx context.Context, t contentTree, sel Selector) (oci.Digest, error) {
	if !sel.filters() {
		sum, err := contentOfPath(ctx, t, sel.Path, sel.FollowLinks)
		return sum.digest(), err
	}
	return contentFiltered(ctx, t, sel)
}

// contentOfPath digests a path, with everything below a directory.
func contentOfPath(ctx context.Context, t contentTree, p string, follow bool) (localSum, error) {
	p = contentKey(p)
	real, e, err := contentResolve(t, p, follow)
	if err != nil {
		return localSum{}, err
	}
	if e == nil {
		return localSum{}, fmt.Errorf("%q: %w", path.Join("/", p), errdefs.ErrNotFound)
	}
	var all []*oci.Entry
	node, err := contentBelow(ctx, t, real, e, &all)
	if err != nil {
		return localSum{}, err
	}
	sums, err := t.hash(ctx, all)
	if err != nil {
		return localSum{}, err
	}
	return node.fold(sums), nil
}

// contentNode is an entry of a subtree; index is its place in the list of all
// entries.
type contentNode struct {
	name     string
	index    int
	isDir    bool
	children []contentNode
}

// contentBelow lists e, which is at p, and all below it.
func contentBelow(ctx context.Context, t contentTree, p string, e *oci.Entry, all *[]*oci.Entry) (contentNode, error) {
	n := contentNode{name: contentName(p), index: len(*all), isDir: e.Mode&unix.S_IFMT == unix.S_IFDIR}
	*all = append(*all, e)
	if err := ctx.Err(); err != nil || !n.isDir {
		return n, err
	}
	children, err := t.list(p)
	if err != nil {
		return n, err
	}
	n.children = make([]contentNode, len(children))
	for i, c := range children {
		if n.children[i], err = contentBelow(ctx, t, p+"/"+contentName(c.Path), c, all); err != nil {
			return n, err
		}
	}
	return n, nil
}

// fold digests the subtree, given the digest of each entry by itself.
func (n contentNode) fold(sums []localSum) localSum {
	if !n.isDir {
		return sums[n.index]
	}
	f := newContentFold(sums[n.index])
	for _, c := range n.children {
		f.add(c.name, c.fold(sums))
	}
	return f.sum()
}

// contentFold digests a directory: its header, then each name with its digest.
type contentFold struct{ h hash.Hash }

func newContentFold(header localSum) contentFold {
	f := contentFold{h: sha256.New()}
	f.h.Write([]byte{0})
	f.write(header)
	return f
}

func (f contentFold) add(name string, s localSum) {
	f.h.Write([]byte{0})
	io.WriteString(f.h, name)
	f.write(s)
}

func (f contentFold) write(s localSum) {
	var text [len("sha256:") + 2*sha256.Size]byte
	copy(text[:], "sha256:")
	hex.Encode(text[len("sha256:"):], s[:])
	f.h.Write(text[:])
}

func (f contentFold) sum() localSum {
	var out localSum
	f.h.Sum(out[:0])
	return out
}

func contentName(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// contentKey is a path as contentTree takes it.
func contentKey(p string) string {
	if p = path.Join("/", p); p == "/" {
		return ""
	}
	return p
}

// contentResolve follows the symbolic links of p, of its last component only
// when follow is set. What does not exist is a nil entry under the name it
// would have.
func contentResolve(t contentTree, p string, follow bool) (string, *oci.Entry, error) {
	e, err := t.lookup(p)
	if err != nil || p == "" || e != nil && (!follow || !isLink(e)) {
		return p, e, err
	}
	current, rest, links := "", strings.TrimPrefix(p, "/"), 0
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		next := contentKey(path.Join("/", current, part))
		if e, err = t.lookup(next); err != nil {
			return "", nil, err
		}
		if e == nil || !isLink(e) || !follow && rest == "" {
			current = next
			continue
		}
		if links++; links > contentMaxLinks {
			return "", nil, fmt.Errorf("%q: %w: %w", p, syscall.ELOOP, errdefs.ErrInvalidArgument)
		}
		rest = e.Link + "/" + rest
		if path.IsAbs(e.Link) {
			current = ""
		}
	}
	if current == "" && e == nil {
		e, err = t.lookup("")
	}
	return current, e, err
}

func isLink(e *oci.Entry) bool { return e.Mode&unix.S_IFMT == unix.S_IFLNK }

// contentFS makes a contentTree of any tree.
type contentFS struct {
	fs tree.FS
}

func (c *contentFS) lookup(p string) (*oci.Entry, error) {
	e, err := c.fs.Lstat(treePath(p))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errdefs.IsNotFound(err) {
		return nil, nil
	}
	return e, err
}

func (c *contentFS) list(p string) ([]*oci.Entry, error) { return c.fs.ReadDir(treePath(p)) }

// treePath is an absolute path as a tree takes it.
func treePath(p string) string {
	if p = strings.Trim(p, "/"); p == "" {
		return "."
	}
	return p
}

// hash reads the entries, several at a time.
func (c *contentFS) hash(ctx context.Context, entries []*oci.Entry) ([]localSum, error) {
	out := make([]localSum, len(entries))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(entries)) {
		g.Go(func() error {
			h, buf := sha256.New(), make([]byte, localBufBytes)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(entries) {
					return nil
				}
				if err := c.hashOne(ctx, h, buf, entries[i]); err != nil {
					return err
				}
				h.Sum(out[i][:0])
			}
		})
	}
	return out, g.Wait()
}

func (c *contentFS) hashOne(ctx context.Context, h hash.Hash, buf []byte, e *oci.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.Reset()
	if e.Path == "." {
		// A layer has no entry for the root, so the root has no header: with
		// BuildKit that is so only for what a client sent.
		return nil
	}
	h.Write(appendTarsum(nil, e))
	if e.Mode&unix.S_IFMT != unix.S_IFREG || e.Size == 0 {
		return nil
	}
	f, err := c.fs.Open(e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	// Both hidden, lest they copy in pieces of their own choice.
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
	return err
}

// lookup, list and hash make a contentTree of a walked directory, whose digests
// are known.
func (t *localTree) lookup(p string) (*oci.Entry, error) {
	if e := t.find(p); e != nil {
		return &e.Entry, nil
	}
	return nil, nil
}

func (t *localTree) list(p string) ([]*oci.Entry, error) {
	var out []*oci.Entry
	if e := t.find(p); e != nil {
		for _, c := range e.children {
			out = append(out, &c.Entry)
		}
	}
	return out, nil
}

func (t *localTree) hash(_ context.Context, entries []*oci.Entry) ([]localSum, error) {
	out := make([]localSum, len(entries))
	for i, e := range entries {
		out[i] = t.find(e.Path).digest
	}
	return out, nil
}
