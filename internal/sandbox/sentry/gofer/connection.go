package gofer

import (
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"
)

// connection is a Tree as lisafs sees it.
type connection Tree

// Mount implements lisafs.ConnectionImpl. No descriptor is given away: the
// client could then name files by itself.
func (c *connection) Mount(conn *lisafs.Connection, node *lisafs.Node) (*lisafs.ControlFD, lisafs.Statx, int, error) {
	t := (*Tree)(c)
	fd, err := t.reopen(int(t.root.Fd()), unix.O_PATH)
	if err != nil {
		return nil, lisafs.Statx{}, -1, err
	}
	f, err := t.look(fd, t.at)
	if err == nil && !served(f.host.Mode) {
		err = unix.EPERM
	}
	if err == nil {
		err = t.reserve()
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, lisafs.Statx{}, -1, err
	}
	node.IncRef() // for the handle
	h := &handle{t: t, fd: fd, kind: uint32(f.host.Mode) & unix.S_IFMT}
	h.Init(conn, node, linux.FileMode(f.is.Mode), h)
	return h.FD(), f.statx(), -1, nil
}

// MaxMessageSize implements lisafs.ConnectionImpl.
func (c *connection) MaxMessageSize() uint32 { return lisafs.MaxMessageSize() }

// SupportedMessages implements lisafs.ConnectionImpl. Flush has nothing to do
// here, and ConnectWithCreds would let the sandbox choose who den is.
func (c *connection) SupportedMessages() []lisafs.MID {
	return []lisafs.MID{
		lisafs.Mount, lisafs.Channel, lisafs.FStat, lisafs.SetStat, lisafs.Walk, lisafs.WalkStat,
		lisafs.OpenAt, lisafs.OpenCreateAt, lisafs.Close, lisafs.FSync, lisafs.PWrite, lisafs.PRead,
		lisafs.MkdirAt, lisafs.MknodAt, lisafs.SymlinkAt, lisafs.LinkAt, lisafs.FStatFS,
		lisafs.FAllocate, lisafs.ReadLinkAt, lisafs.Connect, lisafs.UnlinkAt, lisafs.RenameAt,
		lisafs.RenameAt2, lisafs.Getdents64, lisafs.FGetXattr, lisafs.FSetXattr, lisafs.FListXattr,
		lisafs.FRemoveXattr, lisafs.BindAt, lisafs.Listen, lisafs.Accept,
	}
}

// served says whether files of the type are shown at all.
func served(mode uint16) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		return true
	}
	return false
}

// reserve counts one descriptor more.
func (t *Tree) reserve() error {
	if t.files.Add(1) > t.limit {
		t.files.Add(-1)
		return unix.ENFILE
	}
	return nil
}

func (t *Tree) release() { t.files.Add(-1) }
