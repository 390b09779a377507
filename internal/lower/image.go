package lower

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"den/internal/erofs"
	"den/internal/sys"
)

// image is an open image, closed when nothing of it is open any more.
type image struct {
	r    *erofs.Reader
	refs atomic.Int64

	mu     sync.Mutex
	recent []parent // directories that others were opened in, the last one last
}

// parent is a directory by its path from the root.
type parent struct {
	path string
	dir  *erofs.Dir
}

// maxRecent bounds what an image remembers: who walks a tree comes back to the
// directories above, and to read a large one for each directory in it is slow.
const maxRecent = 16

// within is the directory of a clean relative path, "" for the root.
func (i *image) within(root *erofs.Dir, path string) (*erofs.Dir, error) {
	if path == "" || path == "." {
		return root, nil
	}
	up, name := "", path
	if at := strings.LastIndexByte(path, '/'); at >= 0 {
		up, name = path[:at], path[at+1:]
	}
	dir := root
	if up != "" {
		if dir = i.remembered(up); dir == nil {
			var err error
			if dir, err = i.within(root, up); err != nil {
				return nil, err
			}
			i.remember(up, dir)
		}
	}
	return subDir(dir, name)
}

func (i *image) remembered(path string) *erofs.Dir {
	i.mu.Lock()
	defer i.mu.Unlock()
	for at, p := range i.recent {
		if p.path == path {
			i.recent = append(append(i.recent[:at:at], i.recent[at+1:]...), p)
			return p.dir
		}
	}
	return nil
}

func (i *image) remember(path string, dir *erofs.Dir) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.recent) == maxRecent {
		i.recent = i.recent[1:]
	}
	i.recent = append(i.recent, parent{path, dir})
}

func (i *image) release() {
	if i.refs.Add(-1) == 0 {
		_ = i.r.Close() // opened for reading: nothing can be lost
	}
}

// folder is a directory of a tree that is an image.
type folder struct {
	image *image
	dir   *erofs.Dir
	root  bool
}

func openImage(path string) (Dir, error) {
	r, err := erofs.Open(path)
	if err != nil {
		return nil, err
	}
	i := &image{r: r}
	i.refs.Add(1)
	root, err := r.OpenRoot()
	if err != nil {
		i.release()
		return nil, err
	}
	return &folder{image: i, dir: root, root: true}, nil
}

func (f *folder) Names() ([]string, error) { return f.dir.Names(), nil }

// lookup makes what an image lacks what a system call would say.
func (f *folder) lookup(name string) (erofs.Inode, error) {
	n, err := f.dir.Lookup(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = unix.ENOENT
	}
	return n, err
}

func (f *folder) Stat(name string, st *unix.Stat_t) error {
	n, err := f.lookup(name)
	if err != nil {
		return err
	}
	// No file system has such a device number.
	*st = unix.Stat_t{Dev: 1<<63 | f.image.r.ID(), Ino: n.NID, Mode: n.Mode, Uid: n.UID, Gid: n.GID, Size: n.Size, Rdev: n.Rdev}
	setLinks(&st.Nlink, n.Links)
	st.Mtim, err = unix.TimeToTimespec(n.ModTime)
	return err
}

// setLinks hides that the width of a count depends on the machine.
func setLinks[T uint32 | uint64](to *T, n uint32) { *to = T(n) }

func (f *folder) Attrs(name string) (sys.FileAttrs, error) {
	n, err := f.lookup(name)
	if err != nil {
		return sys.FileAttrs{}, err
	}
	return f.image.r.Attrs(n)
}

func (f *folder) Opaque() (bool, error) { return f.dir.Opaque, nil }

func (f *folder) Readlink(name string) (string, error) {
	n, err := f.lookup(name)
	if err != nil {
		return "", err
	}
	if n.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	return f.image.r.Readlink(n)
}

func (f *folder) OpenDir(name string) (Dir, error) {
	return f.opened(subDir(f.dir, name))
}

func (f *folder) opened(d *erofs.Dir, err error) (Dir, error) {
	if err != nil {
		return nil, err
	}
	f.image.refs.Add(1)
	return &folder{image: f.image, dir: d}, nil
}

// subDir opens a directory, and says what a system call would say.
func subDir(d *erofs.Dir, name string) (*erofs.Dir, error) {
	sub, err := d.Dir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unix.ENOENT
	}
	if errors.Is(err, unix.ENOTDIR) {
		return nil, unix.ENOTDIR
	}
	return sub, err
}

func (f *folder) OpenBeneath(path string) (Dir, error) {
	if f.root {
		return f.opened(f.image.within(f.dir, path))
	}
	d := f.dir
	for part := range strings.SplitSeq(path, "/") {
		sub, err := subDir(d, part)
		if err != nil {
			return nil, err
		}
		d = sub
	}
	return f.opened(d, nil)
}

func (f *folder) Open(name string) (File, error) {
	n, err := f.lookup(name)
	switch {
	case err != nil:
		return File{}, err
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		return File{}, unix.ELOOP
	case n.Mode&unix.S_IFMT != unix.S_IFREG:
		return File{}, unix.ENXIO
	}
	content, err := f.image.r.Content(n)
	if err != nil {
		return File{}, err
	}
	f.image.refs.Add(1)
	return File{FD: -1, Content: &section{SectionReader: content, image: f.image}}, nil
}

func (f *folder) Close() { f.image.release() }

// section is an open file in an image.
type section struct {
	*io.SectionReader
	image  *image
	closed atomic.Bool
}

// Close lets the image go.
func (s *section) Close() error {
	if s.closed.Swap(true) {
		return fs.ErrClosed
	}
	s.image.release()
	return nil
}
