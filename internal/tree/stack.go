package tree

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/lower"
	"den/internal/oci"
	"den/internal/sys"
)

const (
	// maxNames bounds the names that a stack remembers.
	maxNames = 500_000
	// maxOpen bounds the directories that it keeps open beside the roots.
	maxOpen = 128
)

// stack is the merge of layers' trees. It works on nodes: a directory
// of the merged view with the layers that contribute to it. Listing a node
// reads that directory of each of those layers, once; after that a missing
// name costs nothing, however many layers there are.
type stack struct {
	mu    sync.Mutex
	paths []string
	roots []lower.Dir // top first
	root  *node
	names int // remembered in all nodes
	open  map[place]lower.Dir
	order []place // of open, oldest first
}

// place is a directory of one layer.
type place struct {
	level int
	path  string
}

// node is a directory of the merged view.
type node struct {
	path   string
	levels []int             // that contribute, top first
	names  map[string]*child // nil until listed
	sorted []string
}

// child is a name in a node.
type child struct {
	levels []int // that have the name, top first; not cut at whiteouts yet
	node   *node // set once it is known to be a directory
	gone   bool  // known to be a whiteout
}

// Stack is the merged view of layers' trees, top first, directories and images.
// Without any it is empty.
func Stack(dirs []string) (FS, error) {
	s := &stack{paths: dirs, open: map[place]lower.Dir{}}
	for _, d := range dirs {
		root, err := lower.Open(d)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.roots = append(s.roots, root)
	}
	levels := make([]int, len(dirs))
	for i := range levels {
		levels[i] = i
	}
	cut, err := s.cut(levels, "")
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.root = &node{levels: cut}
	return s, nil
}

// cut ends the levels of a directory at the first that is opaque there.
func (s *stack) cut(levels []int, path string) ([]int, error) {
	for i, level := range levels {
		if i == len(levels)-1 {
			break // nothing below that could be hidden
		}
		d, err := s.dir(level, path)
		if err != nil {
			return nil, err
		}
		opaque, err := d.Opaque()
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: path, Err: err}
		}
		if opaque {
			return levels[:i+1], nil
		}
	}
	return levels, nil
}

// dir returns an open directory of one layer, which stays s's.
func (s *stack) dir(level int, path string) (lower.Dir, error) {
	if path == "" {
		return s.roots[level], nil
	}
	at := place{level, path}
	if d, ok := s.open[at]; ok {
		return d, nil
	}
	d, err := s.roots[level].OpenBeneath(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: s.paths[level] + "/" + path, Err: err}
	}
	if len(s.order) == maxOpen {
		s.open[s.order[0]].Close()
		delete(s.open, s.order[0])
		s.order = append(s.order[:0], s.order[1:]...)
	}
	s.open[at] = d
	s.order = append(s.order, at)
	return d, nil
}

// list reads a node's names unless that was done already.
func (s *stack) list(n *node) error {
	if n.names != nil {
		return nil
	}
	if s.names > maxNames { // begin anew; whoever holds a node may keep it
		s.root, s.names = &node{levels: s.root.levels}, 0
	}
	names := map[string]*child{}
	n.sorted = nil
	for _, level := range n.levels {
		d, err := s.dir(level, n.path)
		if err != nil {
			return err
		}
		list, err := d.Names()
		if err != nil {
			return &os.PathError{Op: "getdents", Path: n.path, Err: err}
		}
		for _, name := range list {
			c := names[name]
			if c == nil {
				c = &child{}
				names[name] = c
				n.sorted = append(n.sorted, name)
			}
			c.levels = append(c.levels, level)
		}
	}
	slices.Sort(n.sorted)
	s.names += len(names)
	n.names = names
	return nil
}

// enter returns the node of the directory path.
func (s *stack) enter(op, path string) (*node, error) {
	n := s.root
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		c, err := s.child(n, name)
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, missing(op, path)
		}
		next, err := s.node(n, c, name)
		if err != nil {
			return nil, err
		}
		if next == nil {
			return nil, missing(op, path)
		}
		n = next
	}
	return n, nil
}

// child finds a name in a node; nil if it is missing or removed.
func (s *stack) child(n *node, name string) (*child, error) {
	if err := s.list(n); err != nil {
		return nil, err
	}
	c := n.names[name]
	if c == nil || c.gone {
		return nil, nil
	}
	return c, nil
}

// node is the node of a child; nil if it is no directory.
func (s *stack) node(n *node, c *child, name string) (*node, error) {
	if c.node != nil {
		return c.node, nil
	}
	var levels []int
	for _, level := range c.levels {
		d, err := s.dir(level, n.path)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := d.Stat(name, &st); err != nil {
			return nil, &os.PathError{Op: "lstat", Path: joinPath(n.path, name), Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			c.gone = len(levels) == 0 && sys.IsWhiteout(&st)
			break
		}
		levels = append(levels, level)
	}
	if len(levels) == 0 {
		return nil, nil
	}
	path := joinPath(n.path, name)
	levels, err := s.cut(levels, path)
	if err != nil {
		return nil, err
	}
	c.node = &node{path: path, levels: levels}
	return c.node, nil
}

// Lstat describes a file.
func (s *stack) Lstat(path string) (*oci.Entry, error) {
	f, err := s.locate("lstat", path, func(d lower.Dir, name, path string) (*found, error) { return stat(d, name, path, true) })
	if err != nil {
		return nil, err
	}
	return &f.Entry, nil
}

func (s *stack) lstat(path string) (*found, error) {
	return s.locate("lstat", path, statOnly)
}

// locate calls look with the directory and name that path has in its topmost layer.
func (s *stack) locate(op, path string, look func(d lower.Dir, name, path string) (*found, error)) (*found, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path = clean(path)
	if path == "" {
		if len(s.roots) == 0 {
			return emptyRoot(), nil
		}
		return look(s.roots[0], ".", "")
	}
	n, err := s.enter(op, dirOf(path))
	if err != nil {
		return nil, err
	}
	c, err := s.child(n, baseOf(path))
	if err == nil && c == nil {
		err = missing(op, path)
	}
	if err != nil {
		return nil, err
	}
	return s.look(op, n, c, baseOf(path), look)
}

func emptyRoot() *found {
	return &found{Entry: oci.Entry{Path: ".", Mode: unix.S_IFDIR | 0o755}}
}

// look describes a child, which may turn out to be a whiteout.
func (s *stack) look(op string, n *node, c *child, name string, look func(d lower.Dir, name, path string) (*found, error)) (*found, error) {
	path := joinPath(n.path, name)
	d, err := s.dir(c.levels[0], n.path)
	if err != nil {
		return nil, err
	}
	f, err := look(d, name, path)
	if err == nil && f.Mode&unix.S_IFMT == unix.S_IFCHR && f.Rdev == 0 {
		c.gone = true
		return nil, missing(op, path)
	}
	return f, err
}

// ReadDir lists a directory.
func (s *stack) ReadDir(path string) ([]*oci.Entry, error) { return entries(s.readDir(path)) }

func (s *stack) readDir(path string) ([]*found, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path = clean(path)
	n, err := s.enter("read directory", path)
	if err == nil {
		err = s.list(n)
	}
	if err != nil {
		return nil, err
	}
	list := make([]*found, 0, len(n.sorted))
	for _, name := range n.sorted {
		c := n.names[name]
		if c.gone {
			continue
		}
		f, err := s.look("lstat", n, c, name, func(d lower.Dir, name, path string) (*found, error) { return stat(d, name, path, true) })
		if c.gone {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

// Readlink returns a link's target.
func (s *stack) Readlink(path string) (string, error) { return readlink(s.lstat(path)) }

// Open opens a regular file.
func (s *stack) Open(path string) (io.ReadCloser, error) {
	var file io.ReadCloser
	f, err := s.locate("open", path, func(d lower.Dir, name, path string) (*found, error) {
		f, err := stat(d, name, path, true)
		if err != nil || f.Mode&unix.S_IFMT != unix.S_IFREG {
			return f, err
		}
		file, err = openFile(d, name, path)
		return f, err
	})
	if err != nil {
		return nil, err
	}
	if f.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, wrong("open", f.Path, "regular file")
	}
	return file, nil
}

// Close closes the layers' directories.
func (s *stack) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.roots {
		d.Close()
	}
	for _, d := range s.open {
		d.Close()
	}
	s.roots, s.open, s.order = nil, nil, nil
	s.root = &node{names: map[string]*child{}}
	return nil
}
