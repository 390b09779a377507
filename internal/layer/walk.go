package layer

import (
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/lower"
	"den/internal/oci"
	"den/internal/sys"
)

// WalkUpper yields what a tree holds, in canonical order: an overlay's upper
// directory, or an unpacked layer in either form. See WalkStack.
func WalkUpper(dir string) iter.Seq2[File, error] { return WalkStack([]string{dir}) }

// WalkStack yields the entries of one layer that is kept as several trees, top
// first, as one tree would hold them: a removal stays a removal, because it
// also counts for the layers below. The second name of a file comes as a hard
// link to the first. The root is yielded as "."; WriteTar drops it. After an
// error nothing more comes. Open may be called during the walk or after it.
func WalkStack(dirs []string) iter.Seq2[File, error] {
	return walk(dirs, walker{open: lower.Open})
}

// WalkPlain yields a directory that is not in overlay form: what looks like a
// mark of an overlay there is a user's own, and a device 0:0 one that no layer
// can hold. Recorded devices are devices.
func WalkPlain(dir string) iter.Seq2[File, error] {
	return walk([]string{dir}, walker{open: lower.Open, plain: true})
}

// WalkRecorded is WalkPlain for a directory in which this process keeps records
// of what files should be, because it may not chown: a volume or a cache mount
// of a sandbox. See sys.InodeAttr.
func WalkRecorded(dir string) iter.Seq2[File, error] {
	return walk([]string{dir}, walker{open: lower.OpenRecorded, plain: true})
}

func walk(dirs []string, how walker) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		w := how
		w.roots, w.yield, w.seen = dirs, yield, map[inode]string{}
		if err := w.run(); err != nil {
			yield(File{}, err)
		}
	}
}

type inode struct{ dev, ino uint64 }

type walker struct {
	open  func(root string) (lower.Dir, error)
	roots []string
	plain bool
	yield func(File, error) bool
	seen  map[inode]string // first names of files with several
	ended bool             // the consumer wants no more
}

func (w *walker) run() error {
	var open []*walkDir
	defer func() { closeDirs(open) }()
	for _, root := range w.roots {
		in, err := w.open(root)
		if err != nil {
			return fmt.Errorf("walk tree: %w", err)
		}
		open = append(open, &walkDir{in: in, root: root})
	}
	if len(open) == 0 {
		return nil
	}
	e, err := w.dirEntry(".", open[0])
	if err == nil {
		open, err = cut(&e, open)
	}
	if err != nil {
		return fmt.Errorf("walk tree: %w", err)
	}
	if w.ended = !w.yield(File{Entry: e}, nil); w.ended {
		return nil
	}
	return w.children("", open)
}

// cut ends the stack of directories at the first opaque one, which makes e,
// their merge, opaque.
func cut(e *oci.Entry, dirs []*walkDir) ([]*walkDir, error) {
	for i := 1; i < len(dirs); i++ {
		if e.Opaque {
			closeDirs(dirs[i:])
			return dirs[:i], nil
		}
		a, err := dirs[i].attrs()
		if err != nil {
			return dirs, err
		}
		e.Opaque = a.Opaque
	}
	return dirs, nil
}

// name is one name in one of the directories that are merged.
type name struct {
	name  string
	level int
}

// children yields everything below the merged directories.
func (w *walker) children(path string, dirs []*walkDir) error {
	names, err := listAll(dirs)
	if err != nil {
		return fmt.Errorf("walk tree: %w", &os.PathError{Op: "getdents", Path: path, Err: err})
	}
	for len(names) > 0 && !w.ended {
		n := 1
		for n < len(names) && names[n].name == names[0].name {
			n++
		}
		p := joinPath(path, names[0].name)
		if len(p) > maxPath {
			return fmt.Errorf("walk tree: path %.40q... is longer than %d bytes", p, maxPath)
		}
		if err := w.one(p, names[:n], dirs); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

func listAll(dirs []*walkDir) ([]name, error) {
	var all []name
	for level, d := range dirs {
		names, err := d.in.Names()
		if err != nil {
			return nil, err
		}
		all = slices.Grow(all, len(names))
		for _, n := range names {
			all = append(all, name{n, level})
		}
	}
	slices.SortFunc(all, func(a, b name) int {
		switch {
		case a.name < b.name:
			return -1
		case a.name > b.name:
			return 1
		}
		return a.level - b.level
	})
	return all, nil
}

// one yields the entry that the trees have under one name.
func (w *walker) one(path string, same []name, dirs []*walkDir) error {
	var st unix.Stat_t
	top := dirs[same[0].level]
	base := same[0].name
	if err := top.in.Stat(base, &st); err != nil {
		return fmt.Errorf("walk tree: %w", &os.PathError{Op: "lstat", Path: path, Err: err})
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return w.dir(path, same, dirs)
	case sys.IsWhiteout(&st) && !w.plain:
		w.ended = !w.yield(File{Entry: oci.Entry{Path: path, Whiteout: true}}, nil)
		return nil
	}
	f, err := w.file(path, base, top, &st)
	if err != nil {
		return fmt.Errorf("walk tree: %s: %w", path, err)
	}
	w.ended = !w.yield(f, nil)
	return nil
}

// file describes what is not a directory.
func (w *walker) file(path, base string, d *walkDir, st *unix.Stat_t) (File, error) {
	f := File{Entry: entryOf(path, st)}
	if st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := w.seen[key]; ok {
			f.Hardlink, f.Link, f.Size = true, first, 0
			return f, nil
		}
		w.seen[key] = path
	}
	if f.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := d.in.Readlink(base)
		if err != nil {
			return f, &os.PathError{Op: "readlink", Path: base, Err: err}
		}
		f.Link = target
	}
	a, err := d.in.Attrs(base)
	if err != nil {
		return f, &os.PathError{Op: "getxattr", Path: base, Err: err}
	}
	f.Xattrs = a.Keep
	if f.Mode&unix.S_IFMT != unix.S_IFREG {
		return f, nil
	}
	if n, ok := a.Node(st.Mode, st.Uid, st.Size); ok {
		f.Mode, f.UID, f.GID, f.Rdev = n.Mode, n.UID, n.GID, n.Rdev
		return f, nil
	}
	f.Open = func() (io.ReadCloser, error) { return d.open(path, base) }
	return f, nil
}

// dir yields a directory, merged with those of its name in the trees below.
func (w *walker) dir(path string, same []name, dirs []*walkDir) error {
	var open []*walkDir
	defer func() { closeDirs(open) }()
	hidden := false // something below ends here, as an opaque directory would
	for i, n := range same {
		parent := dirs[n.level]
		if i > 0 {
			var st unix.Stat_t
			if err := parent.in.Stat(n.name, &st); err != nil {
				return fmt.Errorf("walk tree: %w", &os.PathError{Op: "lstat", Path: path, Err: err})
			}
			if hidden = st.Mode&unix.S_IFMT != unix.S_IFDIR; hidden {
				break
			}
		}
		in, err := parent.in.OpenDir(n.name)
		if err != nil {
			return fmt.Errorf("walk tree: %w", &os.PathError{Op: "open", Path: path, Err: err})
		}
		open = append(open, &walkDir{in: in, root: parent.root, path: path})
	}
	e, err := w.dirEntry(path, open[0])
	if err == nil {
		open, err = cut(&e, open)
	}
	if err != nil {
		return fmt.Errorf("walk tree: %s: %w", path, err)
	}
	e.Opaque = e.Opaque || hidden
	if w.ended = !w.yield(File{Entry: e}, nil); w.ended {
		return nil
	}
	return w.children(path, open)
}

func (w *walker) dirEntry(path string, d *walkDir) (oci.Entry, error) {
	var st unix.Stat_t
	if err := d.in.Stat(".", &st); err != nil {
		return oci.Entry{}, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	a, err := d.attrs()
	if err != nil {
		return oci.Entry{}, err
	}
	e := entryOf(path, &st)
	e.Xattrs, e.Opaque = a.Keep, a.Opaque && !w.plain
	return e, nil
}

// entryOf translates what stat(2) says.
func entryOf(path string, st *unix.Stat_t) oci.Entry {
	e := oci.Entry{Path: path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix())}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	return e
}
