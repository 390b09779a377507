package tree

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sys"
)

const (
	// maxNames bounds the names that a stack remembers.
	maxNames = 500_000
	// maxOpen bounds the directories that it keeps open beside the roots.
	maxOpen = 128
)

// stack is the merge of overlay directories. It works on nodes: a directory
// of the merged view with the layers that contribute to it. Listing a node
// reads that directory of each of those layers, once; after that a missing
// name costs nothing, however many layers there are.
type stack struct {
	mu    sync.Mutex
	paths []string
	roots []int // descriptors, top first
	root  *node
	names int // remembered in all nodes
	open  map[place]int
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

// Stack is the merged view of overlay directories, top first. Without any it
// is empty.
func Stack(dirs []string) (FS, error) {
	s := &stack{paths: dirs, open: map[place]int{}}
	for _, d := range dirs {
		fd, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(&os.PathError{Op: "open", Path: d, Err: err}, s.Close())
		}
		s.roots = append(s.roots, fd)
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
		fd, err := s.dir(level, path)
		if err != nil {
			return nil, err
		}
		value, err := sys.FgetXattr(fd, sys.OpaqueAttr)
		switch {
		case err == nil && string(value) == "y":
			return levels[:i+1], nil
		case err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP):
			return nil, &os.PathError{Op: "getxattr", Path: path, Err: err}
		}
	}
	return levels, nil
}

// dir returns an open directory of one layer, which stays s's.
func (s *stack) dir(level int, path string) (int, error) {
	if path == "" {
		return s.roots[level], nil
	}
	at := place{level, path}
	if fd, ok := s.open[at]; ok {
		return fd, nil
	}
	fd, err := sys.OpenDirBeneath(s.roots[level], path)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: s.paths[level] + "/" + path, Err: err}
	}
	if len(s.order) == maxOpen {
		_ = unix.Close(s.open[s.order[0]])
		delete(s.open, s.order[0])
		s.order = append(s.order[:0], s.order[1:]...)
	}
	s.open[at] = fd
	s.order = append(s.order, at)
	return fd, nil
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
		fd, err := s.dir(level, n.path)
		if err != nil {
			return err
		}
		list, err := sys.ReadNames(fd)
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
		fd, err := s.dir(level, n.path)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := sys.LstatAt(fd, name, &st); err != nil {
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
	f, err := s.locate("lstat", path, func(fd int, name, path string) (*found, error) { return stat(fd, name, path, true) })
	if err != nil {
		return nil, err
	}
	return &f.Entry, nil
}

func (s *stack) lstat(path string) (*found, error) {
	return s.locate("lstat", path, statOnly)
}

// locate calls look with the directory and name that path has in its topmost layer.
func (s *stack) locate(op, path string, look func(fd int, name, path string) (*found, error)) (*found, error) {
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
func (s *stack) look(op string, n *node, c *child, name string, look func(fd int, name, path string) (*found, error)) (*found, error) {
	path := joinPath(n.path, name)
	fd, err := s.dir(c.levels[0], n.path)
	if err != nil {
		return nil, err
	}
	f, err := look(fd, name, path)
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
		f, err := s.look("lstat", n, c, name, func(fd int, name, path string) (*found, error) { return stat(fd, name, path, true) })
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
	var file *os.File
	f, err := s.locate("open", path, func(fd int, name, path string) (*found, error) {
		f, err := stat(fd, name, path, true)
		if err != nil || f.Mode&unix.S_IFMT != unix.S_IFREG {
			return f, err
		}
		file, err = openFile(fd, name, path)
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
	for _, fd := range s.roots {
		_ = unix.Close(fd) // opened for reading: nothing can be lost
	}
	for _, fd := range s.open {
		_ = unix.Close(fd)
	}
	s.roots, s.open, s.order = nil, nil, nil
	s.root = &node{names: map[string]*child{}}
	return nil
}
