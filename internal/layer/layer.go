// Package layer turns layer tars into trees on disk and trees into layer tars.
//
// A tree is a directory in overlay form, where a whiteout is a character device
// 0:0 and an opaque directory carries user.overlay.opaque=y, or the image of one
// (package erofs); a walk takes either and a mix of them. Three rules make that
// safe and repeatable:
//
//   - A tar is hostile. No entry reaches outside its tree, every header
//     is bounded, and what cannot be made is an error that names the entry.
//   - The tar of a tree is canonical: the same entries give the same bytes and
//     so the same diffID, whoever writes them.
//   - A tree's own bookkeeping (user.overlay.*, user.den.*) never enters a tar
//     and is never taken from one.
//
// The canonical tar: entries in the order of ComparePaths, every parent named,
// the root not; ustar headers, and a pax header (records sorted by key) only
// for what they cannot hold; owners as numbers; modification times in whole
// seconds and no other times; the attributes that sys.KeepXattr keeps; the
// second name of a file as a hard link to the first; a removal as an empty
// ".wh." file without owner and time at the place of the removed name, and
// dropped where the layer hides what is below anyway; ".wh..wh..opq" right
// behind its directory; sockets left out; two zero blocks at the end. Changing
// any of this changes diffIDs: it is a new unpack version of the store.
package layer

import (
	"io"

	"den/internal/oci"
)

// A File is an entry and the way to its bytes.
type File struct {
	oci.Entry
	// Open opens the content of a regular file; nil means no content. It is
	// called at most once, perhaps from another goroutine. What has a method Fd,
	// as an *os.File, lets Build share blocks with the source.
	Open func() (io.ReadCloser, error)
}

// Applied says what a tar stream was.
type Applied struct {
	// DiffID is the digest of the uncompressed tar, all of it.
	DiffID oci.Digest
	// SizeBytes is its length.
	SizeBytes int64
	// Entries counts the tar's members, without PAX headers.
	Entries int
	// TreeBytes sums the sizes of the regular files.
	TreeBytes int64
	// Devices counts the device nodes that were recorded and not made.
	Devices int
}

// UnpackOptions change what Unpack and Build do.
type UnpackOptions struct {
	// Image makes the tree as an image, at a path that does not exist yet, with
	// what lies beside it (erofs.OpaqueSuffix and AttrsSuffix); a failure leaves
	// nothing. It needs no privilege, and keeps devices whatever InUserns says.
	Image bool
	// InUserns says that device nodes cannot be made. They are recorded: an
	// empty file with the attribute sys.DeviceAttr, which WalkUpper and
	// package tree read back as the device.
	InUserns bool
	// Recorded says that this process may not chown: owners, modes and nodes are
	// recorded (sys.InodeAttr), and WalkRecorded reads them back. An image holds
	// them anyway.
	Recorded bool
	// Unnamed is for who wants the tree and no name: Unpack hashes nothing, and
	// leaves Applied.DiffID empty.
	Unnamed bool
	// Archive takes ".wh." names literally: the tar is a user's archive (ADD),
	// not a layer.
	Archive bool
	// Owner, if set, owns everything instead of the ids in the tar.
	Owner *Owner
	// MaxBytes bounds the sum of all file sizes; 0 is no bound.
	MaxBytes int64
	// MaxEntries bounds the number of entries; 0 is DefaultMaxEntries.
	MaxEntries int
}

// Owner is a user and a group.
type Owner struct{ UID, GID uint32 }
