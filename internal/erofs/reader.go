package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A Reader reads an image and its archive of attributes. What it finds it
// checks: numbers lie inside the image, names are ones, directories form a
// tree. It may be used by several goroutines, and what it returns outlives it
// but for content, which is read from the file that Close closes.
type Reader struct {
	f    *os.File
	path string
	size int64
	meta int64 // offset of the inodes
	root uint64
	id   uint64

	once     sync.Once                    // reads the archive of attributes
	attrs    map[uint64]map[string][]byte // by inode number
	attrsErr error

	mu     sync.Mutex
	window []byte // of the file at start: inodes that are asked for next
	start  int64
}

// An Inode is what has a place in an image.
type Inode struct {
	NID   uint64
	Mode  uint32
	UID   uint32
	GID   uint32
	Links uint32
	// Size in bytes, for regular files and symbolic links.
	Size    int64
	ModTime time.Time
	// Rdev is a device's number, as in stat(2).
	Rdev uint64
	// Whiteout marks a name that is removed from the layers below.
	Whiteout bool
	// Opaque marks a directory that hides the one of the layers below.
	Opaque bool

	at int64 // of the content
}

// openFlags open a file itself, and wait for nobody.
const openFlags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK

// windowBytes is what is read ahead of an inode: a directory's children lie together.
const windowBytes = 16 << 10

// Open opens the image at path. A file that is none, or only a part of one,
// is ErrBroken.
func Open(path string) (*Reader, error) {
	f, err := os.OpenFile(path, openFlags, 0)
	if err != nil {
		return nil, err
	}
	r, err := newReader(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image %s: %w", path, err), f.Close())
	}
	return r, nil
}

func newReader(f *os.File) (*Reader, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, broken("it is no regular file")
	}
	r := &Reader{f: f, path: f.Name(), size: st.Size, id: st.Ino ^ st.Dev<<40}
	return r, r.super()
}

// super reads the superblock.
func (r *Reader) super() error {
	var b [128]byte
	if _, err := r.f.ReadAt(b[:], superOffset); err == io.EOF {
		return broken("%d bytes", r.size)
	} else if err != nil {
		return err
	}
	le := binary.LittleEndian
	switch {
	case le.Uint32(b[0:]) != superMagic:
		return broken("no superblock")
	case b[12] != blockBits || le.Uint32(b[8:]) != 0 || le.Uint32(b[80:]) != 0:
		return broken("a format that den does not write")
	case int64(le.Uint32(b[36:]))<<blockBits != r.size:
		return broken("%d bytes instead of %d blocks", r.size, le.Uint32(b[36:]))
	}
	r.root = uint64(le.Uint16(b[14:]))
	r.meta = int64(le.Uint32(b[40:])) << blockBits
	return nil
}

// Close closes the image.
func (r *Reader) Close() error { return r.f.Close() }

// ID tells open images apart: made of the file's device and inode number.
func (r *Reader) ID() uint64 { return r.id }

// Root is the root directory.
func (r *Reader) Root() (Inode, error) {
	n, err := r.inode(r.root)
	if err == nil && n.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = broken("the root is no directory")
	}
	return n, err
}

// inode reads one inode.
func (r *Reader) inode(nid uint64) (Inode, error) {
	if nid > uint64(r.size/slotSize) {
		return Inode{}, broken("inode %d", nid)
	}
	var b [inodeSize]byte
	at := r.meta + int64(nid)*slotSize
	if err := r.readMeta(b[:], at); err != nil {
		return Inode{}, fmt.Errorf("inode %d: %w", nid, err)
	}
	le := binary.LittleEndian
	n := Inode{
		NID: nid, Mode: uint32(le.Uint16(b[4:])), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]),
		ModTime: time.Unix(int64(le.Uint64(b[32:])), int64(le.Uint32(b[40:]))), Links: le.Uint32(b[44:]),
	}
	format, size, raw := le.Uint16(b[0:]), le.Uint64(b[8:]), le.Uint32(b[16:])
	if le.Uint16(b[2:]) != 0 || format&1 != extended || n.Links == 0 {
		return Inode{}, broken("inode %d: a format that den does not write", nid)
	}
	n.at = int64(raw) << blockBits
	if format>>1 == layoutInline && n.Mode&unix.S_IFMT == unix.S_IFLNK {
		n.at = at + inodeSize
	} else if format>>1 != layoutPlain {
		return Inode{}, broken("inode %d: layout %d", nid, format>>1)
	}
	n.Opaque = b[opaqueAt] == opaqueMark && n.Mode&unix.S_IFMT == unix.S_IFDIR
	return n, r.check(&n, size, raw)
}

// check judges what an inode says of its content.
func (r *Reader) check(n *Inode, size uint64, raw uint32) error {
	switch kind := n.Mode & unix.S_IFMT; kind {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		if size > uint64(r.size) || (size > 0 && n.at > r.size-int64(size)) {
			return broken("inode %d: %d bytes at %d of %d", n.NID, size, n.at, r.size)
		}
		n.Size = int64(size)
		if kind == unix.S_IFLNK && (size == 0 || size > maxTarget) {
			return broken("inode %d: symbolic link of %d bytes", n.NID, size)
		}
		return nil
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = decodeRdev(raw)
		n.Whiteout = kind == unix.S_IFCHR && raw == 0
	case unix.S_IFIFO:
	default:
		return broken("inode %d: mode %#o", n.NID, n.Mode)
	}
	if size != 0 {
		return broken("inode %d: mode %#o with %d bytes", n.NID, n.Mode, size)
	}
	return nil
}

// readMeta fills b with the image's bytes at a place where inodes are.
func (r *Reader) readMeta(b []byte, at int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at < r.start || at+int64(len(b)) > r.start+int64(len(r.window)) {
		if r.window == nil {
			r.window = make([]byte, 0, windowBytes)
		}
		n, err := r.f.ReadAt(r.window[:windowBytes], at)
		r.window, r.start = r.window[:n], at
		if err != nil && err != io.EOF {
			r.window = r.window[:0]
			return err
		}
		if n < len(b) {
			return broken("it ends at %d", at+int64(n))
		}
	}
	copy(b, r.window[at-r.start:])
	return nil
}

// Readlink returns the target of a symbolic link.
func (r *Reader) Readlink(n Inode) (string, error) {
	if n.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", invalid("readlink inode %d: mode %#o", n.NID, n.Mode)
	}
	b := make([]byte, n.Size)
	if _, err := r.f.ReadAt(b, n.at); err != nil {
		return "", fmt.Errorf("inode %d: %w", n.NID, short(err))
	}
	for _, c := range b {
		if c == 0 {
			return "", broken("inode %d: target with a zero byte", n.NID)
		}
	}
	return string(b), nil
}

// Content is the content of a regular file.
func (r *Reader) Content(n Inode) (*io.SectionReader, error) {
	if n.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, invalid("content of inode %d: mode %#o", n.NID, n.Mode)
	}
	return io.NewSectionReader(r.f, n.at, n.Size), nil
}

// Attrs are the marks and the extended attributes of an inode.
func (r *Reader) Attrs(n Inode) (sys.FileAttrs, error) {
	r.once.Do(func() {
		if r.attrsErr = r.readAttrs(r.path + AttrsSuffix); r.attrsErr != nil {
			r.attrsErr = fmt.Errorf("read image %s: %w", r.path, r.attrsErr)
		}
	})
	return sys.FileAttrs{Keep: r.attrs[n.NID], Opaque: n.Opaque}, r.attrsErr
}

// short makes the end of the file what it is: an image that was cut.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return broken("unexpected end")
	}
	return err
}

// notExist is the error for a name that is missing.
func notExist(name string) error { return fmt.Errorf("%.200s: %w", name, fs.ErrNotExist) }
