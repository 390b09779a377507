package ops

import (
	"io"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/tree"
)

// treeView is a fileView of any tree.
type treeView struct {
	fs tree.FS
	// dirs are the listings of directories that are visited, by a tree's path.
	dirs map[string][]fileNamed
	// first has the first name of each file with several, by each of them.
	first map[string]string
}

func newTreeView(fs tree.FS) *treeView { return &treeView{fs: fs} }

func (v *treeView) lstat(p string) (*oci.Entry, error) {
	e, err := v.fs.Lstat(treePath(p))
	if err != nil {
		return nil, pathError("lstat", p, fileErrno(err))
	}
	return e, nil
}

func (v *treeView) readDir(p string) ([]fileNamed, error) {
	if list, ok := v.dirs[treePath(p)]; ok {
		return list, nil
	}
	list, err := v.fs.ReadDir(treePath(p))
	if err != nil {
		return nil, pathError("open", p, fileErrno(err))
	}
	out := make([]fileNamed, len(list))
	for i, e := range list {
		out[i] = fileNamed{contentName(e.Path), e}
	}
	return out, nil
}

func (v *treeView) open(p string) (io.ReadCloser, error) { return v.fs.Open(treePath(p)) }

func (v *treeView) inode(p string, e *oci.Entry) any {
	if e := viewEntry(v, p); e != nil {
		if e.stat.Nlink > 1 {
			return e.stat.Ino
		}
		return nil
	}
	if first, ok := v.first[treePath(p)]; ok {
		return first
	}
	return nil
}

// visit walks p, because only a walk finds out about hard links.
func (v *treeView) visit(p string) error {
	if _, local := v.fs.(*localFS); local {
		return nil
	}
	v.dirs, v.first = map[string][]fileNamed{}, map[string]string{}
	files := map[string]*oci.Entry{}
	root := treePath(p)
	return tree.Walk(v.fs, root, func(e *oci.Entry) error {
		if e.Hardlink {
			v.first[e.Path], v.first[e.Link] = e.Link, e.Link
			named := *files[e.Link]
			named.Path = e.Path
			e = &named
		}
		if isDir(e) {
			v.dirs[e.Path] = nil
		} else {
			files[e.Path] = e
		}
		if e.Path != root {
			dir := path.Dir(e.Path)
			v.dirs[dir] = append(v.dirs[dir], fileNamed{path.Base(e.Path), e})
		}
		return nil
	})
}

func (v *treeView) leave() { v.dirs, v.first = nil, nil }

// viewEntry is the file of a context that v reads at p, or nil.
func viewEntry(v fileView, p string) *localEntry {
	if t, ok := v.(*treeView); ok {
		if l, ok := t.fs.(*localFS); ok {
			return l.t.find(p)
		}
	}
	return nil
}

// emptyView is the tree without anything.
type emptyView struct{}

func (emptyView) lstat(p string) (*oci.Entry, error) {
	if p == "/" {
		return &oci.Entry{Path: ".", Mode: unix.S_IFDIR | 0o755}, nil
	}
	return nil, pathError("lstat", p, syscall.ENOENT)
}

func (emptyView) readDir(p string) ([]fileNamed, error) {
	if p == "/" {
		return nil, nil
	}
	return nil, pathError("open", p, syscall.ENOENT)
}

func (emptyView) open(p string) (io.ReadCloser, error) {
	return nil, pathError("open", p, syscall.ENOENT)
}

func (emptyView) inode(string, *oci.Entry) any { return nil }
func (emptyView) visit(string) error           { return nil }
func (emptyView) leave()                       {}
