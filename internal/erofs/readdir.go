package erofs

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Dir is the listing of a directory in an image.
type Dir struct {
	Inode
	r       *Reader
	entries []dirent // sorted, without the dots
}

// dirChunk is what is read of a directory at once.
const dirChunk = 16 * blockSize

type dirent struct {
	name  string
	nid   uint64
	isDir bool
}

// Dir reads the directory n, whose parent is dir; the root's is itself.
func (r *Reader) Dir(n Inode, parent uint64) (*Dir, error) {
	if n.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("inode %d: %w", n.NID, unix.ENOTDIR)
	}
	d := &Dir{Inode: n, r: r}
	dots := map[string]uint64{}
	chunk := make([]byte, min(n.Size, dirChunk))
	for at := int64(0); at < n.Size; at += dirChunk {
		data := chunk[:min(n.Size-at, dirChunk)]
		if _, err := r.f.ReadAt(data, n.at+at); err != nil {
			return nil, fmt.Errorf("directory %d: %w", n.NID, short(err))
		}
		text := string(data) // the names share it
		for len(data) > 0 {
			size := min(blockSize, len(data))
			if err := d.block(data[:size], text[:size], dots); err != nil {
				return nil, fmt.Errorf("directory %d: %w", n.NID, err)
			}
			data, text = data[size:], text[size:]
		}
	}
	self, ok := dots["."]
	up, ok2 := dots[".."]
	if !ok || !ok2 || self != n.NID || up != parent {
		return nil, broken("directory %d: its dots are %d and %d", n.NID, self, up)
	}
	return d, d.checkOrder()
}

// block reads one block of entries.
func (d *Dir) block(data []byte, text string, dots map[string]uint64) error {
	le := binary.LittleEndian
	if len(data) < direntSize {
		return broken("block of %d bytes", len(data))
	}
	first := int(le.Uint16(data[8:]))
	if first < direntSize || first%direntSize != 0 || first > len(data) {
		return broken("names at %d", first)
	}
	count := first / direntSize
	for i := range count {
		e := data[i*direntSize:]
		from, to := int(le.Uint16(e[8:])), len(data)
		if i+1 < count {
			to = int(le.Uint16(e[direntSize+8:]))
		}
		if from < first || to <= from || to > len(data) {
			return broken("name from %d to %d", from, to)
		}
		name := text[from:to]
		if i+1 == count { // a block that is not the last is filled up
			name, _, _ = strings.Cut(name, "\x00")
		}
		entry := dirent{name: name, nid: le.Uint64(e), isDir: e[10] == fileType(unix.S_IFDIR)}
		switch {
		case name == "." || name == "..":
			if _, twice := dots[name]; twice {
				return broken("%s twice", name)
			}
			dots[name] = entry.nid
			continue
		case name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00"):
			return broken("name %.80q", name)
		}
		d.entries = append(d.entries, entry)
	}
	return nil
}

// checkOrder makes sure that names are sorted and that directories are a tree:
// each comes after its parent and under one name only.
func (d *Dir) checkOrder() error {
	last := d.NID
	for i, e := range d.entries {
		if i > 0 && d.entries[i-1].name >= e.name {
			return broken("directory %d: %.80q after %.80q", d.NID, e.name, d.entries[i-1].name)
		}
		if !e.isDir {
			continue
		}
		if e.nid <= last {
			return broken("directory %d: %.80q is inode %d", d.NID, e.name, e.nid)
		}
		last = e.nid
	}
	return nil
}

// Names are the names in the directory, sorted.
func (d *Dir) Names() []string {
	names := make([]string, len(d.entries))
	for i, e := range d.entries {
		names[i] = e.name
	}
	return names
}

// Lookup is the inode of a name; fs.ErrNotExist if there is none. "." is the
// directory itself.
func (d *Dir) Lookup(name string) (Inode, error) {
	if name == "." {
		return d.Inode, nil
	}
	i, ok := slices.BinarySearchFunc(d.entries, name, func(e dirent, name string) int { return strings.Compare(e.name, name) })
	if !ok {
		return Inode{}, notExist(name)
	}
	e := d.entries[i]
	n, err := d.r.inode(e.nid)
	if err != nil {
		return n, err
	}
	if e.isDir != (n.Mode&unix.S_IFMT == unix.S_IFDIR) {
		return n, broken("%.80q: inode %d has mode %#o", name, n.NID, n.Mode)
	}
	return n, nil
}

// Dir opens the directory name.
func (d *Dir) Dir(name string) (*Dir, error) {
	n, err := d.Lookup(name)
	if err != nil {
		return nil, err
	}
	return d.r.Dir(n, d.NID)
}

// OpenRoot opens the root directory.
func (r *Reader) OpenRoot() (*Dir, error) {
	n, err := r.Root()
	if err != nil {
		return nil, err
	}
	return r.Dir(n, n.NID)
}
