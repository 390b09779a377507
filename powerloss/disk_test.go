package powerloss

import (
	"context"
	"slices"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// blockSize is what the disk writes whole or not at all.
const blockSize = 4096

// An image is the content of a disk, by block; nil is a block of zeros. Blocks
// are never changed, only replaced, so that copies of an image share them.
type image []*[blockSize]byte

func (m image) readAt(p []byte, off int64) {
	for len(p) > 0 {
		at := int(off % blockSize)
		n := min(len(p), blockSize-at)
		if b := m[off/blockSize]; b != nil {
			copy(p, b[at:at+n])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// writeAt keeps data, which must not change any more.
func (m image) writeAt(data []byte, off int64) {
	for len(data) > 0 {
		i, at := off/blockSize, int(off%blockSize)
		n := min(len(data), blockSize-at)
		if n == blockSize {
			m[i] = (*[blockSize]byte)(data)
		} else {
			b := new([blockSize]byte)
			m.readAt(b[:], i*blockSize)
			copy(b[at:], data[:n])
			m[i] = b
		}
		data, off = data[n:], off+int64(n)
	}
}

// An entry is what the disk was asked: a write, a flush, or neither: something
// that a process said at this moment.
type entry struct {
	off   int64
	data  []byte
	flush bool
	said  *event
}

// A disk is a file of a FUSE file system, below a loop device. It logs every
// write and flush in their order.
type disk struct {
	fs.Inode
	closed chan struct{} // the loop device let go

	mu  sync.Mutex
	img image
	log []entry
}

func newDisk(img image) *disk {
	return &disk{img: slices.Clone(img), closed: make(chan struct{})}
}

// A handle is the loop device's; without one nobody hears of its end.
type handle struct{}

var (
	_ fs.NodeOpener    = (*disk)(nil)
	_ fs.NodeGetattrer = (*disk)(nil)
	_ fs.NodeReader    = (*disk)(nil)
	_ fs.NodeWriter    = (*disk)(nil)
	_ fs.NodeFsyncer   = (*disk)(nil)
	_ fs.NodeReleaser  = (*disk)(nil)
)

// Open turns the page cache off: a write arrives here before the loop device
// reports it as done.
func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return handle{}, fuse.FOPEN_DIRECT_IO, 0
}

func (d *disk) Release(context.Context, fs.FileHandle) syscall.Errno {
	close(d.closed) // opened once, by attach
	return 0
}

func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	out.Size = uint64(len(d.img)) * blockSize
	out.Blksize = blockSize
	return 0
}

func (d *disk) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.img.readAt(p, off)
	return fuse.ReadResultData(p), 0
}

func (d *disk) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	data := slices.Clone(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.img.writeAt(data, off)
	d.log = append(d.log, entry{off: off, data: data})
	return uint32(len(p)), 0
}

// Fsync is what a flush of the loop device becomes, and a write with FUA after
// the write.
func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, entry{flush: true})
	return 0
}

// note puts into the log what somebody says.
func (d *disk) note(e event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, entry{said: &e})
}

// recorded is the log until now.
func (d *disk) recorded() []entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clip(d.log)
}
