package ops

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"den/internal/failpoint"
	"den/internal/layer"
	"den/internal/oci"
)

// commit makes s a layer on top of its base.
func (r *fileRun) commit(ctx context.Context, s *fileState) error {
	l, err := r.layerOf(ctx, s)
	if err != nil {
		return err
	}
	ref, err := r.env.push(ctx, s.base, r.env.builtLayer(l), l, r.v.Digest)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, ref.Close)
	s.ref, s.tree, s.base, s.place = ref, nil, nil, nil
	return nil
}

// finish is called between the making of a tree and its publication.
func (r *fileRun) finish(s *fileState) error {
	if err := failpoint.Hit("ops.file.publish"); err != nil {
		return err
	}
	return r.verify(s.tree)
}

// verify says whether the files of a context that the tree's content came from
// were left alone while they were read.
func (r *fileRun) verify(t *fileTree) error {
	var open *localFS
	for _, s := range r.states {
		v, ok := s.view.(*treeView)
		if !ok {
			continue
		}
		if open, ok = v.fs.(*localFS); !ok {
			continue
		}
		if err := t.verifyFrom(open); err != nil {
			return err
		}
	}
	return nil
}

func (t *fileTree) verifyFrom(l *localFS) error {
	for _, e := range t.unpacked {
		if err := l.verifyOwn(e); err != nil {
			return err
		}
	}
	return t.root.eachFile(l.verifyOwn)
}

// eachFile calls f for what the content of each file is read from.
func (n *fileNode) eachFile(f func(*localEntry) error) error {
	if n.fileInode != nil && n.from != nil {
		if err := f(n.from); err != nil {
			return err
		}
	}
	for _, c := range n.children {
		if err := c.eachFile(f); err != nil {
			return err
		}
	}
	return nil
}

// files lists what differs from the tree below, as the entries of a layer.
func (t *fileTree) files() iter.Seq2[layer.File, error] {
	return func(yield func(layer.File, error) bool) {
		w := fileWalk{yield: yield, first: map[*fileInode]string{}}
		w.children(t.root, ".")
	}
}

// fileWalk yields a tree's nodes, parents first and names in byte order.
type fileWalk struct {
	yield func(layer.File, error) bool
	// first has the first name of each file, which later ones link to.
	first map[*fileInode]string
}

func (w *fileWalk) children(n *fileNode, p string) bool {
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		if !w.node(n.children[name], path.Join(p, name)) {
			return false
		}
	}
	return true
}

func (w *fileWalk) node(n *fileNode, p string) bool {
	if n.fileInode == nil {
		return w.yield(layer.File{Entry: oci.Entry{Path: p, Whiteout: true}}, nil)
	}
	f := layer.File{Entry: n.Entry}
	f.Path, f.Opaque = p, n.opaque
	if isDir(&n.Entry) {
		return w.yield(f, nil) && w.children(n, p)
	}
	if first, ok := w.first[n.fileInode]; ok {
		f.Hardlink, f.Link, f.Size = true, first, 0
		return w.yield(f, nil)
	}
	w.first[n.fileInode] = p
	if n.Mode&unix.S_IFMT == unix.S_IFREG && n.content != nil && n.Size > 0 {
		f.Open = contextPath(n.content, p)
	}
	return w.yield(f, nil)
}

// contextPath names the file in errors that do not.
func contextPath(open func() (io.ReadCloser, error), p string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		rc, err := open()
		if _, named := err.(*fs.PathError); err != nil && !named {
			err = pathError("open", p, err)
		}
		return rc, err
	}
}
