package gofer

import (
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/fsutil"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/marshal/primitive"

	"den/internal/sys"
)

// maxDirents bounds the bytes of one answer to Getdents, which has to fit in a message.
const maxDirents = 64 << 10

// Open implements lisafs.ControlFDImpl. Links, devices and sockets are not
// opened, and neither is what stands for them.
func (h *handle) Open(flags uint32) (*lisafs.OpenFD, int, error) {
	how := int(flags & (unix.O_ACCMODE | unix.O_TRUNC))
	if h.t.readOnly && how != unix.O_RDONLY {
		return nil, -1, unix.EROFS
	}
	switch {
	case uint32(h.FileType()) != h.kind:
		return nil, -1, unix.ENXIO
	case h.kind == unix.S_IFREG, h.kind == unix.S_IFDIR:
	case h.kind == unix.S_IFIFO: // the client waits for the other end by itself
		how = how&unix.O_ACCMODE | unix.O_NONBLOCK
	default:
		return nil, -1, unix.ENXIO
	}
	if err := h.t.reserve(); err != nil {
		return nil, -1, err
	}
	fd := -1
	err := h.admitted(func() (err error) {
		fd, err = h.t.reopen(h.fd, how)
		return err
	})
	if err != nil {
		h.t.release()
		return nil, -1, err
	}
	give := -1
	if h.kind != unix.S_IFDIR {
		give = donation(fd)
	}
	return h.opened(fd, flags).FD(), give, nil
}

// An openFile is a file that the client has opened.
type openFile struct {
	lisafs.OpenFD
	h  *handle
	fd int
}

var _ lisafs.OpenFDImpl = (*openFile)(nil)

// opened takes over fd and one reserved place.
func (h *handle) opened(fd int, flags uint32) *openFile {
	o := &openFile{h: h, fd: fd}
	o.Init(h.FD(), flags, o)
	return o
}

// FD implements lisafs.OpenFDImpl.
func (o *openFile) FD() *lisafs.OpenFD {
	if o == nil {
		return nil
	}
	return &o.OpenFD
}

// Close implements lisafs.OpenFDImpl.
func (o *openFile) Close() {
	_ = unix.Close(o.fd)
	o.h.t.release()
}

// Stat implements lisafs.OpenFDImpl.
func (o *openFile) Stat() (lisafs.Statx, error) { return o.h.Stat() }

// Sync implements lisafs.OpenFDImpl.
func (o *openFile) Sync() error { return unix.Fsync(o.fd) }

// Write implements lisafs.OpenFDImpl.
func (o *openFile) Write(buf []byte, off uint64) (uint64, error) {
	if o.h.t.readOnly {
		return 0, unix.EROFS
	}
	return o.transfer(buf, off, unix.Pwrite)
}

// Read implements lisafs.OpenFDImpl.
func (o *openFile) Read(buf []byte, off uint64) (uint64, error) {
	return o.transfer(buf, off, unix.Pread)
}

// transfer calls move until all is done, or nothing more is.
func (o *openFile) transfer(buf []byte, off uint64, move func(int, []byte, int64) (int, error)) (done uint64, err error) {
	if off > 1<<63-1 {
		return 0, unix.EINVAL
	}
	for len(buf) > 0 {
		n, err := move(o.fd, buf, int64(off))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && done > 0, err == nil && n <= 0:
			return done, nil
		case err != nil:
			return 0, err
		}
		done, off, buf = done+uint64(n), off+uint64(n), buf[n:]
	}
	return done, nil
}

// Allocate implements lisafs.OpenFDImpl.
func (o *openFile) Allocate(mode, off, length uint64) error {
	if o.h.t.readOnly {
		return unix.EROFS
	}
	if off > 1<<63-1 || length > 1<<63-1 || mode > 1<<32-1 {
		return unix.EINVAL
	}
	for {
		if err := unix.Fallocate(o.fd, uint32(mode), int64(off), int64(length)); err != unix.EINTR {
			return err
		}
	}
}

// Flush implements lisafs.OpenFDImpl.
func (o *openFile) Flush() error { return nil }

// Renamed implements lisafs.OpenFDImpl.
func (o *openFile) Renamed() {}

// Getdent64 implements lisafs.OpenFDImpl. The device number that the client
// wants for each entry is the directory's: what is mounted on an entry shows
// when that is walked to.
func (o *openFile) Getdent64(count uint32, seek0 bool, record func(lisafs.Dirent64)) error {
	if seek0 {
		if _, err := unix.Seek(o.fd, 0, 0); err != nil {
			return err
		}
	}
	var dir unix.Statx_t
	if err := statx(o.fd, &dir); err != nil {
		return err
	}
	names, err := sys.RecordedNames(o.fd, o.h.t.self)
	if err != nil {
		names = sys.Names{}
	}
	count = min(count, maxDirents)
	var buf [8 << 10]byte
	for read := uint32(0); read < count; {
		size := min(count-read, uint32(len(buf)))
		n, err := unix.Getdents(o.fd, buf[:size])
		if err == unix.EINVAL && int(size) < fsutil.UnixDirentMaxSize {
			return nil // no room for one more
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			return nil
		}
		read += uint32(n)
		fsutil.ParseDirents(buf[:n], func(ino uint64, off int64, ftype uint8, name string, _ uint16) {
			if ftype == unix.DT_REG && names.StandIns {
				ftype = o.standIn(name)
			}
			record(lisafs.Dirent64{
				Ino: primitive.Uint64(ino), Off: primitive.Uint64(off), Type: primitive.Uint8(ftype), Name: lisafs.SizedString(name),
				DevMinor: primitive.Uint32(dir.Dev_minor), DevMajor: primitive.Uint32(dir.Dev_major),
			})
		})
	}
	return nil
}

// standIn is the type that a regular file has in the sandbox, as in d_type.
func (o *openFile) standIn(name string) uint8 {
	i, ok, err := readRecord(-1, place{o.fd, name})
	if err != nil || !ok {
		return unix.DT_REG
	}
	return uint8(kind(i.Mode) >> 12)
}
