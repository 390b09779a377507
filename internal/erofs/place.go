package erofs

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// Add puts an entry into the tree. Entries mean what they mean in a layer's
// tar: a later one replaces an earlier one of its path; a directory that is
// there already keeps its content; a whiteout and the mark of an opaque
// directory (Opaque without a mode) count only for the layers below; symbolic
// links among the parents are resolved inside the tree; missing parents are
// made. What makes no sense is errdefs.ErrInvalidArgument.
//
// For a regular file with content it reserves room and returns the offset at
// which the caller writes e.Size bytes to Fd before Close; what is not written
// reads as zeros. A hard link's entry is given its file's attributes.
func (w *Writer) Add(e *oci.Entry) (at int64, err error) {
	if e.Path == "." {
		return 0, w.addRoot(e)
	}
	dir, err := w.parent(e.Path)
	if err != nil {
		return 0, err
	}
	name := baseOf(e.Path)
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
		return 0, invalid("name %.80q", name)
	}
	here := dir.dir.kids[name]
	switch kind := e.Mode & unix.S_IFMT; {
	case e.Whiteout:
		w.removed(dir, name, here)
		return 0, nil
	case e.Hardlink:
		return 0, w.hardlink(dir, name, e)
	case e.Opaque && kind == 0:
		return 0, w.opaque(dir, name, here, e.Path)
	case kind == unix.S_IFDIR:
		return 0, w.addDir(dir, name, here, e)
	case kind == unix.S_IFREG:
		return w.addFile(dir, name, e)
	case kind == unix.S_IFLNK && (e.Link == "" || len(e.Link) > maxTarget):
		return 0, invalid("target of symbolic link is %d bytes long", len(e.Link))
	case kind == unix.S_IFLNK, kind == unix.S_IFCHR && e.Rdev != 0, kind == unix.S_IFBLK, kind == unix.S_IFIFO:
		dir.dir.put(name, newNode(e))
		return 0, nil
	}
	return 0, invalid("mode %#o is of no known type", e.Mode)
}

// Entry describes what has a path at this point, as it would be read; false if
// it is missing or removed. Symbolic links are followed among its parents.
func (w *Writer) Entry(path string) (oci.Entry, bool) {
	dir, err := w.parent(path)
	if err != nil {
		return oci.Entry{}, false
	}
	n := dir.dir.kids[baseOf(path)]
	if n == nil || n.whiteout {
		return oci.Entry{}, false
	}
	return n.entry(path), true
}

// addRoot gives the root directory itself what the entry "." says.
func (w *Writer) addRoot(e *oci.Entry) error {
	w.root.dir.opaque = w.root.dir.opaque || e.Opaque
	if e.Mode == 0 {
		return nil
	}
	if e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return invalid("the root can only be a directory")
	}
	w.root.mode = unix.S_IFDIR | uint16(e.Mode&0o7777)
	w.root.dress(e)
	return nil
}

// removed records that the layers below lose a name. What this layer has there
// stays, but hides what they have (OCI image-spec, layer.md).
func (w *Writer) removed(dir *node, name string, here *node) {
	switch {
	case here == nil:
		dir.dir.put(name, newWhiteout())
	case here.isDir():
		here.dir.opaque = true
	}
}

// opaque marks a directory, which may come later or never.
func (w *Writer) opaque(dir *node, name string, here *node, path string) error {
	switch {
	case here == nil, here.whiteout:
		n, err := w.implied(dir, name)
		if err != nil {
			return err
		}
		n.dir.opaque = true
		return nil
	case !here.isDir():
		return invalid("it is marked as an opaque directory and is none")
	}
	here.dir.opaque = true
	return nil
}

// addDir makes a directory, or gives an existing one new attributes.
func (w *Writer) addDir(dir *node, name string, here *node, e *oci.Entry) error {
	if here != nil && here.isDir() {
		here.mode = unix.S_IFDIR | uint16(e.Mode&0o7777)
		here.dress(e)
		here.dir.opaque = here.dir.opaque || e.Opaque
		return nil
	}
	n, err := w.mkdir(dir, name, e)
	if err == nil && here != nil && here.whiteout {
		n.dir.opaque = true // the layers below stay removed
	}
	return err
}

func (w *Writer) mkdir(dir *node, name string, e *oci.Entry) (*node, error) {
	if dir.dir.depth >= maxDepth {
		return nil, invalid("more than %d directories above each other", maxDepth)
	}
	if w.dirs++; w.o.MaxDirs > 0 && w.dirs > w.o.MaxDirs {
		return nil, invalid("more than %d directories", w.o.MaxDirs)
	}
	n := newDir(e, dir, name)
	dir.dir.put(name, n)
	return n, nil
}

// implied makes a directory that no entry named so far.
func (w *Writer) implied(dir *node, name string) (*node, error) {
	e := oci.Entry{Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(0, 0)}
	if w.o.Parent != nil {
		path := joinPath(dir.path(), name)
		below, err := w.o.Parent(path)
		if err != nil {
			return nil, fmt.Errorf("parent %.200s: %w", path, err)
		}
		if below != nil && below.Mode&unix.S_IFMT == unix.S_IFDIR {
			e = *below
			e.Opaque = false
		}
	}
	return w.mkdir(dir, name, &e)
}

func (w *Writer) addFile(dir *node, name string, e *oci.Entry) (int64, error) {
	if e.Size < 0 {
		return 0, invalid("size %d", e.Size)
	}
	at := w.end
	blocks := e.Size>>blockBits + min(e.Size&(blockSize-1), 1)
	if blocks > maxBlocks-w.end>>blockBits {
		return 0, fmt.Errorf("%d bytes more: the image would be larger than %d TiB: %w", e.Size, (maxBlocks+1)>>28, oci.ErrTooLarge)
	}
	w.end += blocks << blockBits
	n := newNode(e)
	n.size, n.at = e.Size, at
	dir.dir.put(name, n)
	return at, nil
}

// hardlink gives an existing file another name.
func (w *Writer) hardlink(dir *node, name string, e *oci.Entry) error {
	to, err := w.parent(e.Link)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	n := to.dir.kids[baseOf(e.Link)]
	switch {
	case n == nil:
		return invalid("hard link to %.200s, which is not in this layer", e.Link)
	case n.isDir(), n.whiteout:
		return invalid("hard link to %.200s, which is a directory or removed", e.Link)
	}
	if here := dir.dir.kids[name]; here != nil && here.isDir() {
		for d := to; d != nil; d = d.dir.parent {
			if d == here {
				return invalid("hard link to %.200s, in the directory that it replaces", e.Link)
			}
		}
	}
	dir.dir.put(name, n)
	w.asked = nil // name may have been a link on the way to it
	e.Mode, e.UID, e.GID, e.ModTime = uint32(n.mode), n.uid, n.gid, n.modTime()
	return nil
}

// parent is the directory of path, made if it is missing.
func (w *Writer) parent(path string) (*node, error) {
	dir := dirOf(path)
	if w.asked != nil && dir == w.askedPath {
		return w.asked, nil
	}
	w.asked = nil
	n, err := w.enter(dir)
	if err == nil {
		w.asked, w.askedPath = n, dir
	}
	return n, err
}

// enter walks to the directory dir. Where the layer put a symbolic link on the
// way it is resolved inside the tree.
func (w *Writer) enter(dir string) (*node, error) {
	n := w.root
	links := 0
	for rest := dir; rest != ""; {
		var next string
		next, rest, _ = strings.Cut(rest, "/")
		switch next {
		case "", ".":
			continue
		case "..":
			if n.dir.parent != nil {
				n = n.dir.parent
			}
			continue
		}
		k := n.dir.kids[next]
		switch {
		case k != nil && k.isDir():
			n = k
		case k == nil || k.whiteout:
			made, err := w.implied(n, next)
			if err != nil {
				return nil, fmt.Errorf("parent %.200s: %w", dir, err)
			}
			made.dir.opaque = k != nil
			n = made
		case k.kind() == unix.S_IFLNK:
			if links++; links > maxLinks {
				return nil, invalid("parent %.200s: too many symbolic links", dir)
			}
			if strings.HasPrefix(k.link(), "/") {
				n = w.root
			}
			rest = k.link() + "/" + rest
		default:
			return nil, invalid("parent %.200s: %.200s is not a directory", dir, next)
		}
	}
	return n, nil
}

// dirOf is the directory of a clean relative path, "" for one in the root.
func dirOf(p string) string { return p[:max(strings.LastIndexByte(p, '/'), 0)] }

// baseOf is the last component of a clean relative path.
func baseOf(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
