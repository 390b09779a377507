package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// layout gives everything its place, first in mind and then on disk: inodes in
// the order of nodes, from meta on, then the directories in the same order.
type layout struct {
	meta  int64 // offset of the inodes, from which their numbers count
	used  int64 // of the inodes so far, in bytes
	nodes []*node
	end   int64 // of the image
}

// place numbers a directory tree. The inodes of one directory's children lie
// together, in the order of their names, after their directory's: reading a
// directory's content reads few blocks, and no image has a cycle.
func (l *layout) place(root *node) error {
	l.inode(root)
	root.nlink = 2
	l.children(root)
	l.end = up(l.meta+l.used, blockSize)
	for _, n := range l.nodes {
		switch {
		case n.isDir():
			n.at = l.end
			n.size = dirBytes(n.dir.entries())
			l.end += up(n.size, blockSize)
		case n.kind() == unix.S_IFLNK && !inlined(n):
			n.at = l.end
			l.end += blockSize
		}
		if l.end>>blockBits > maxBlocks {
			return fmt.Errorf("more than %d TiB: %w", (maxBlocks+1)>>28, oci.ErrTooLarge)
		}
	}
	return nil
}

func (l *layout) children(d *node) {
	d.dir.names = slices.Sorted(maps.Keys(d.dir.kids))
	for _, name := range d.dir.names {
		n := d.dir.kids[name]
		if n.nlink == 0 {
			l.inode(n)
		}
		n.nlink++
		if n.isDir() {
			n.nlink++ // its own dot
			d.nlink++
		}
	}
	for _, name := range d.dir.names {
		if n := d.dir.kids[name]; n.isDir() {
			l.children(n)
		}
	}
}

// inode reserves the place of one inode. It does not straddle blocks, and
// neither does the target of a symbolic link behind it.
func (l *layout) inode(n *node) {
	size := int64(inodeSize)
	if inlined(n) {
		size += n.size
	}
	if l.used&(blockSize-1)+size > blockSize {
		l.used = up(l.used, blockSize)
	}
	n.nid = uint64(l.used / slotSize)
	l.used += up(size, slotSize)
	l.nodes = append(l.nodes, n)
}

// inlined says that a symbolic link's target fits behind its inode.
func inlined(n *node) bool {
	return n.kind() == unix.S_IFLNK && n.size <= blockSize-inodeSize
}

func up(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// write writes what place has placed.
func (l *layout) write(f *os.File) error {
	w := bufio.NewWriterSize(io.NewOffsetWriter(f, l.meta), 1<<20)
	var at int64
	var buf [inodeSize]byte
	for i, n := range l.nodes {
		start := int64(n.nid) * slotSize
		if err := zeros(w, start-at); err != nil {
			return err
		}
		n.encode(buf[:], uint32(i+1))
		at = start + inodeSize
		if _, err := w.Write(buf[:]); err != nil {
			return err
		}
		if inlined(n) {
			at += n.size
			if _, err := w.WriteString(n.link()); err != nil {
				return err
			}
		}
	}
	if err := zeros(w, up(at, blockSize)-at); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.content(w); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Truncate(l.end)
}

func zeros(w *bufio.Writer, n int64) error {
	for ; n > 0; n-- {
		if err := w.WriteByte(0); err != nil {
			return err
		}
	}
	return nil
}

// encode writes a struct erofs_inode_extended.
func (n *node) encode(b []byte, number uint32) {
	clear(b)
	le := binary.LittleEndian
	var format uint16 = extended | layoutPlain<<1
	if inlined(n) {
		format = extended | layoutInline<<1
	}
	le.PutUint16(b[0:], format)
	le.PutUint16(b[4:], n.mode)
	le.PutUint64(b[8:], uint64(n.size))
	switch {
	case n.isDevice():
		le.PutUint32(b[16:], encodeRdev(n.rdev()))
	case n.size > 0 && !inlined(n):
		le.PutUint32(b[16:], uint32(n.at>>blockBits))
	}
	le.PutUint32(b[20:], number)
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.seconds))
	le.PutUint32(b[40:], n.nanos)
	le.PutUint32(b[44:], n.nlink)
	if n.isDir() && n.dir.opaque {
		b[opaqueAt] = opaqueMark
	}
}

// content writes the blocks that stand behind the inodes.
func (n *node) content(w *bufio.Writer) error {
	switch {
	case n.isDir():
		return writeDir(w, n.dir.entries(), n.lookup)
	case n.kind() == unix.S_IFLNK && !inlined(n):
		if _, err := w.WriteString(n.link()); err != nil {
			return err
		}
		return zeros(w, up(n.size, blockSize)-n.size)
	}
	return nil
}

// lookup finds what a name stands for in a directory's listing.
func (n *node) lookup(name string) *node {
	switch {
	case name == ".":
		return n
	case name != "..":
		return n.dir.kids[name]
	case n.dir.parent == nil:
		return n
	}
	return n.dir.parent
}

// entries are the names that a directory lists, sorted, its two dots among them.
func (d *directory) entries() []string {
	names := make([]string, 0, len(d.names)+2)
	dots := []string{".", ".."}
	for _, name := range d.names {
		for len(dots) > 0 && dots[0] < name {
			names, dots = append(names, dots[0]), dots[1:]
		}
		names = append(names, name)
	}
	return append(names, dots...)
}

// fitting is how many of the first names fit one block, and what they take.
func fitting(names []string) (n, size int) {
	for n < len(names) && size+direntSize+len(names[n]) <= blockSize {
		size += direntSize + len(names[n])
		n++
	}
	return n, size
}

// dirBytes is the size of a directory: whole blocks, and what the last one has.
func dirBytes(names []string) (size int64) {
	for {
		n, used := fitting(names)
		if names = names[n:]; len(names) == 0 {
			return size + int64(used)
		}
		size += blockSize
	}
}

// writeDir writes a directory: blocks of entries and, behind them, their names.
func writeDir(w *bufio.Writer, names []string, lookup func(string) *node) error {
	le := binary.LittleEndian
	var block [blockSize]byte
	for len(names) > 0 {
		clear(block[:])
		n, _ := fitting(names)
		at := n * direntSize
		for i, name := range names[:n] {
			e := block[i*direntSize:]
			child := lookup(name)
			le.PutUint64(e, child.nid)
			le.PutUint16(e[8:], uint16(at))
			e[10] = fileType(uint32(child.mode))
			at += copy(block[at:], name)
		}
		names = names[n:]
		if _, err := w.Write(block[:]); err != nil {
			return err
		}
	}
	return nil
}

// super writes the first block, without which the file is no image.
func (l *layout) super(f *os.File) error {
	var block [blockSize]byte
	le := binary.LittleEndian
	b := block[superOffset:]
	le.PutUint32(b[0:], superMagic)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(l.nodes[0].nid))
	le.PutUint64(b[16:], uint64(len(l.nodes)))
	le.PutUint32(b[36:], uint32(l.end>>blockBits))
	le.PutUint32(b[40:], uint32(l.meta>>blockBits))
	_, err := f.WriteAt(block[:], 0)
	return err
}
