package gofer

import (
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"
)

// maxSocketPath is the longest path of a socket address, without its end.
const maxSocketPath = 107

// socket makes an end that never blocks: a thread that waited for a peer
// would hold up renames in the whole tree.
func socket(kind uint32) (int, error) {
	switch kind {
	case unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET:
		return unix.Socket(unix.AF_UNIX, int(kind)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	}
	return -1, unix.ENXIO
}

// Connect implements lisafs.ControlFDImpl: whoever was given a directory with
// a socket in it may use that, as with any other container engine. Type 0
// asks for whatever is there.
func (h *handle) Connect(sockType uint32) (int, error) {
	if h.kind != unix.S_IFSOCK {
		return -1, unix.ENOTSOCK
	}
	kinds := []uint32{sockType}
	if sockType == 0 {
		kinds = []uint32{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM}
	}
	err := error(unix.ENXIO)
	for _, k := range kinds {
		var fd int
		if fd, err = socket(k); err != nil {
			return -1, err
		}
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: procPath(h.fd)}); err == nil {
			return fd, nil
		}
		_ = unix.Close(fd)
		if err != unix.EPROTOTYPE {
			break
		}
	}
	return -1, err
}

// ConnectWithCreds implements lisafs.ControlFDImpl. It is not offered.
func (h *handle) ConnectWithCreds(uint32, lisafs.UID, lisafs.GID) (int, error) {
	return -1, unix.EOPNOTSUPP
}

// BindAt implements lisafs.ControlFDImpl. After EPERM the client keeps the
// socket in its own memory.
func (h *handle) BindAt(name string, sockType uint32, mode linux.FileMode, uid lisafs.UID, gid lisafs.GID) (*lisafs.ControlFD, lisafs.Statx, *lisafs.BoundSocketFD, int, error) {
	fail := func(err error) (*lisafs.ControlFD, lisafs.Statx, *lisafs.BoundSocketFD, int, error) {
		return nil, lisafs.Statx{}, nil, -1, err
	}
	path := procPath(h.fd) + "/" + name
	switch {
	case strings.IndexByte(name, 0) >= 0: // would end the address
		return fail(unix.EINVAL)
	case len(path) > maxSocketPath:
		return fail(unix.EPERM)
	}
	want := h.t.wanted(unix.S_IFSOCK, mode, uid, gid)
	fd, err := socket(sockType)
	if err != nil {
		return fail(err)
	}
	_ = unix.Fchmod(fd, h.t.firstMode(want)) // the kernel makes the name with it
	err = h.making(name, func() error {
		if err := h.t.reserve(); err != nil {
			return err
		}
		err := unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		if err != nil {
			h.t.release()
		}
		return err
	})
	if err != nil {
		_ = unix.Close(fd)
		return fail(err)
	}
	c, st, err := h.made(name, want)
	if err != nil {
		_ = unix.Close(fd)
		h.t.release()
		return fail(err)
	}
	give, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	b := &boundSocket{t: h.t, fd: fd}
	b.Init(c, b)
	if err != nil {
		// The connection drops both handles when it ends.
		h.undo(name, want.Mode)
		return fail(err)
	}
	return c, st, b.FD(), give, nil
}

// A boundSocket listens for the client.
type boundSocket struct {
	lisafs.BoundSocketFD
	t  *Tree
	fd int
}

var _ lisafs.BoundSocketFDImpl = (*boundSocket)(nil)

// FD implements lisafs.BoundSocketFDImpl.
func (b *boundSocket) FD() *lisafs.BoundSocketFD {
	if b == nil {
		return nil
	}
	return &b.BoundSocketFD
}

// Close implements lisafs.BoundSocketFDImpl.
func (b *boundSocket) Close() {
	_ = unix.Close(b.fd)
	b.t.release()
}

// Listen implements lisafs.BoundSocketFDImpl.
func (b *boundSocket) Listen(backlog int32) error { return unix.Listen(b.fd, int(backlog)) }

// Accept implements lisafs.BoundSocketFDImpl. Who connects is not told: the
// address would be a path of the outer container.
func (b *boundSocket) Accept() (int, string, error) {
	fd, _, err := unix.Accept4(b.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, "", err
	}
	return fd, "", nil
}
