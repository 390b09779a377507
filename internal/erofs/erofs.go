// Package erofs writes the tree of a layer into one file and reads it back
// without mounting it: an EROFS image, as Linux and gVisor mount it.
//
//   - An image keeps every owner, mode, device and time inside, so that whoever
//     may write a plain file may keep any layer, whatever its user is allowed.
//   - A writer is fed a layer's entries in the order of their tar and writes
//     content as it comes; the same entries in the same order give the same bytes.
//   - The superblock is written last: what was torn is no image. A reader
//     checks all that it uses, and what is broken is an error.
//
// What gVisor's reader cannot take lies in two sidecars beside the image, of
// which each exists only if there is something in it: the image of OpaqueSuffix
// and the archive of AttrsSuffix. An image with its sidecars is a layer's whole
// tree; the image form of docs/design/store.md.
//
// Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux
// 6.1, of which only this is used: blocks of 4 KiB, no feature bits, extended
// inodes, contiguous data ("flat plain"), the targets of symbolic links behind
// their inodes. Data comes first, then the inodes, the root's first and those
// of a directory's children in one run, then the directories. The first of the
// reserved bytes at the end of an inode is 1 for an opaque directory, which only
// this package's Reader looks at.
package erofs

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// OpaqueSuffix is appended to an image's path: an image that holds a
	// whiteout for each opaque directory but the root, to be stacked directly below.
	OpaqueSuffix = ".opq"
	// AttrsSuffix is appended to an image's path: a tar of the entries that have
	// extended attributes or are device nodes, whole, with all their parents, to
	// be stacked directly above. Its names begin with "./", as gVisor wants them.
	AttrsSuffix = ".xtar"
)

const (
	blockBits  = 12
	blockSize  = 1 << blockBits
	slotSize   = 32 // inode numbers count these
	inodeSize  = 64 // of an extended inode
	direntSize = 12

	superOffset = 1024
	superMagic  = 0xe0f5e1e2

	opaqueMark = 1 // at opaqueAt in an inode
	opaqueAt   = 48

	layoutPlain  = 0
	layoutInline = 2
	extended     = 1

	// maxBlocks is what the superblock can count: 16 TiB.
	maxBlocks = 1<<32 - 1

	maxName   = 255
	maxTarget = 4095 // PATH_MAX without its zero
	maxLinks  = 40   // the kernel's bound on symbolic links on one way
	maxDepth  = 4096 // directories above an entry; no path names deeper ones
)

// fileTypes are the types of directory entries, by the type bits of a mode.
func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// encodeRdev is the kernel's new_encode_dev, in which images keep devices.
func encodeRdev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func decodeRdev(v uint32) uint64 {
	return unix.Mkdev(v>>8&0xfff, v&0xff|v>>12&0xfff00)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// ErrBroken is what all errors of a reader wrap that say that the bytes are no
// image of this package's, or only a part of one.
var ErrBroken = errors.New("broken image")

func broken(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrBroken)...)
}
