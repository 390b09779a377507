package erofs

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

const paxXattr = "SCHILY.xattr."

// sidecars writes what an image cannot say; it knows every node's place.
func (w *Writer) sidecars() error {
	if err := w.opaqueImage(); err != nil {
		return err
	}
	return w.attrsArchive()
}

// opaqueImage writes the image of whiteouts that hides what the layers below
// have under opaque directories.
func (w *Writer) opaqueImage() error {
	paths := opaquePaths(w.root, "", nil)
	if len(paths) == 0 {
		return nil
	}
	marks, err := Create(w.path+OpaqueSuffix, Options{})
	if err != nil {
		return err
	}
	for _, path := range paths {
		if _, err := marks.Add(&oci.Entry{Path: path, Whiteout: true}); err != nil {
			return errors.Join(err, marks.Abort())
		}
	}
	return marks.Close()
}

// opaquePaths are the topmost opaque directories below d. The root is none: no
// name could hide it, so that whoever stacks images ends the stack there.
func opaquePaths(d *node, path string, paths []string) []string {
	for _, name := range d.dir.names {
		n, below := d.dir.kids[name], joinPath(path, name)
		switch {
		case !n.isDir():
		case n.dir.opaque:
			paths = append(paths, below)
		default:
			paths = opaquePaths(n, below, paths)
		}
	}
	return paths
}

// attrsArchive writes the entries whose attributes or device numbers gVisor
// does not read in images.
func (w *Writer) attrsArchive() error {
	a := archive{image: w.f, holds: map[*node]bool{}, first: map[*node]string{}}
	if !a.find(w.root) {
		return nil
	}
	f, err := os.OpenFile(w.path+AttrsSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(f, 256<<10)
	a.tar = tar.NewWriter(buf)
	return errors.Join(a.add(w.root, "./"), a.tar.Close(), buf.Flush(), f.Close())
}

// archive is a tar of the nodes that belong to it and the directories above them.
type archive struct {
	tar   *tar.Writer
	image io.ReaderAt
	holds map[*node]bool   // directories with something below them
	first map[*node]string // names of nodes that are in the tar
}

// find reports whether a node or something below it belongs to the archive.
func (a *archive) find(n *node) bool {
	found := len(n.xattrs()) > 0 || n.isDevice()
	if !n.isDir() {
		return found
	}
	for _, k := range n.dir.kids {
		found = a.find(k) || found
	}
	if found {
		a.holds[n] = true
	}
	return found
}

// add writes a node that belongs to the archive, and what is below it.
func (a *archive) add(n *node, name string) error {
	if first, ok := a.first[n]; ok {
		return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, Format: tar.FormatPAX})
	}
	if n.nlink > 1 && !n.isDir() {
		a.first[n] = name
	}
	if err := a.tar.WriteHeader(headerOf(n, name)); err != nil {
		return err
	}
	if n.kind() == unix.S_IFREG {
		_, err := io.Copy(a.tar, io.NewSectionReader(a.image, n.at, n.size))
		return err
	}
	if !n.isDir() {
		return nil
	}
	for _, base := range n.dir.names {
		k := n.dir.kids[base]
		path := name + base
		if k.isDir() {
			path += "/"
		}
		if a.holds[k] || (!k.isDir() && a.find(k)) {
			if err := a.add(k, path); err != nil {
				return err
			}
		}
	}
	return nil
}

func headerOf(n *node, name string) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(n.mode & 0o7777), Uid: int(n.uid), Gid: int(n.gid), ModTime: n.modTime(), Format: tar.FormatPAX,
	}
	switch n.kind() {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, n.size
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.link()
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	}
	h.Devmajor, h.Devminor = int64(unix.Major(n.rdev())), int64(unix.Minor(n.rdev()))
	for attr, value := range n.xattrs() {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+attr] = string(value)
	}
	return h
}
