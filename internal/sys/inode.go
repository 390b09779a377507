package sys

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Who may not chown, and is to serve a directory in which a sandbox does,
// records what a file should be beside it:
//
// InodeAttr on a regular file or a directory is 20 bytes, numbers little
// endian:
//
//	0   1  version, 1
//	1   1  0
//	2   2  type and permissions as in st_mode
//	4   4  uid
//	8   4  gid
//	12  4  major device number
//	16  4  minor device number
//
// A directory's record is of a directory. A regular file's is of a regular
// file, or the file is empty and stands for a node that could not be made.
// A record that fits its file in no such way counts for nothing, and so does
// one that somebody else could have written: see Owner.Keeps. What has no
// record and belongs to the process that keeps them is root's.
const InodeAttr = "user.den.inode"

// Inode is what a file should be, where the file on disk cannot be it.
type Inode struct {
	// Mode is type and permissions as in st_mode.
	Mode     uint32
	UID, GID uint32
	// Rdev is the number of a device node.
	Rdev uint64
}

const (
	inodeVersion = 1
	inodeSize    = 20
	// noID is (uid_t)-1, which is nobody's.
	noID = 1<<32 - 1
)

// Format is the value of InodeAttr.
func (i Inode) Format() []byte {
	b := make([]byte, inodeSize)
	b[0] = inodeVersion
	binary.LittleEndian.PutUint16(b[2:], uint16(i.Mode))
	binary.LittleEndian.PutUint32(b[4:], i.UID)
	binary.LittleEndian.PutUint32(b[8:], i.GID)
	binary.LittleEndian.PutUint32(b[12:], unix.Major(i.Rdev))
	binary.LittleEndian.PutUint32(b[16:], unix.Minor(i.Rdev))
	return b
}

// ParseInode reads the value of InodeAttr. It takes exactly what Format writes.
func ParseInode(b []byte) (Inode, bool) {
	if len(b) != inodeSize || b[0] != inodeVersion || b[1] != 0 {
		return Inode{}, false
	}
	i := Inode{
		Mode: uint32(binary.LittleEndian.Uint16(b[2:])),
		UID:  binary.LittleEndian.Uint32(b[4:]), GID: binary.LittleEndian.Uint32(b[8:]),
	}
	major, minor := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[16:])
	if major >= 1<<12 || minor >= 1<<20 || !i.sound() {
		return Inode{}, false
	}
	i.Rdev = unix.Mkdev(major, minor)
	return i, i.Rdev == 0 || isDevice(i.Mode)
}

// sound says that the type exists and that the owners can be somebody.
func (i Inode) sound() bool {
	if i.UID == noID || i.GID == noID {
		return false
	}
	switch i.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		return i.Mode < 1<<16
	}
	return false
}

func isDevice(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK
}

// Fits says whether a file of that mode and size may have this record: a
// directory's is of a directory, and only an empty file stands for something
// else than itself.
func (i Inode) Fits(mode uint32, size int64) bool {
	kind := i.Mode & unix.S_IFMT
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return kind == unix.S_IFREG || (size == 0 && kind != unix.S_IFDIR && kind != unix.S_IFLNK)
	case unix.S_IFDIR:
		return kind == unix.S_IFDIR
	}
	return false
}

// HostMode is the mode that a file has on disk when the record says what it
// should be: its owner can always work with it, nobody else can change it or
// its record, and a program that a sandbox marked setuid is not setuid for
// others on the machine.
func (i Inode) HostMode() uint32 {
	if i.Mode&unix.S_IFMT == unix.S_IFDIR {
		return i.Mode&0o1755 | 0o700
	}
	return i.Mode&0o755 | 0o600
}

// Shown is what a file without a record is said to be by a process that keeps
// records: its own files are root's, others are whose they are.
func Shown(mode, uid, gid uint32, rdev uint64, self Owner) Inode {
	i := Inode{Mode: mode, UID: uid, GID: gid, Rdev: rdev}
	if uid == self.UID {
		i.UID = 0
		if gid == self.GID {
			i.GID = 0
		}
	}
	return i
}

// Owner is a user and a group.
type Owner struct{ UID, GID uint32 }

// Self is the owner of what this process makes.
func Self() Owner { return Owner{UID: uint32(unix.Geteuid()), GID: uint32(unix.Getegid())} }

// Keeps says whether a record on a file of that mode and owner is o's own:
// user attributes can be set by whoever may write to the file.
func (o Owner) Keeps(mode, uid uint32) bool { return uid == o.UID && mode&0o022 == 0 }

// MayChown tries whether the process can give files to others and mark them
// setuid. Who cannot keeps records.
func MayChown() bool {
	fd, err := unix.MemfdCreate("trial", unix.MFD_CLOEXEC)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Fchown(fd, 1, 1) == nil && unix.Fchmod(fd, 0o4755) == nil && unix.Fchown(fd, 65533, 65533) == nil
}
