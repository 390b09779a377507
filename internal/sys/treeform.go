package sys

import (
	"strings"

	"golang.org/x/sys/unix"
)

// The marks that a tree on disk carries beside its files: the overlay file
// system's, in the flavour of mounts with the option userxattr, and one of
// den's own.
const (
	// OpaqueAttr with the value "y" marks a directory that hides those below.
	OpaqueAttr = "user.overlay.opaque"
	// DeviceAttr on an empty regular file says which device node the file
	// stands for, where no node could be made: the value is that of InodeAttr. See FileAttrs.Node.
	DeviceAttr = "user.den.device"
	// CapabilityAttr holds a file's capabilities.
	CapabilityAttr = "security.capability"
)

// IsWhiteout reports whether a file marks the removal of its name from the
// layers below.
func IsWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// KeepXattr says which extended attributes belong to a file's content. Labels
// and access lists are the host's (SELinux, IMA, a default ACL on the store)
// and stay out, as for Docker and BuildKit; the marks of overlay file systems
// and of den would change what other files mean.
func KeepXattr(name string) bool {
	if name == CapabilityAttr {
		return true
	}
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && len(name) <= 255 &&
		!strings.HasPrefix(name, "user.overlay.") && !strings.HasPrefix(name, "user.den.")
}

// FileAttrs is what the extended attributes of a file in a tree say.
type FileAttrs struct {
	// Keep are those that belong to the content.
	Keep   map[string][]byte
	Opaque bool
	// Device is what DeviceAttr says, or nil; anybody may have set it. See Node.
	Device *Inode
	// Record is what InodeAttr says, or nil. See Seen.
	Record *Inode
}

// FileAttrsAt reads the attributes of name in dirfd itself.
func FileAttrsAt(dirfd int, name string) (FileAttrs, error) {
	names, err := ListXattrAt(dirfd, name)
	if err != nil || len(names) == 0 {
		return FileAttrs{}, err
	}
	return sortAttrs(names, func(attr string) ([]byte, error) { return GetXattrAt(dirfd, name, attr) })
}

// FileAttrsOf reads the attributes of an open file.
func FileAttrsOf(fd int) (FileAttrs, error) {
	names, err := FlistXattr(fd)
	if err != nil || len(names) == 0 {
		return FileAttrs{}, err
	}
	return sortAttrs(names, func(attr string) ([]byte, error) { return FgetXattr(fd, attr) })
}

func sortAttrs(names []string, get func(attr string) ([]byte, error)) (a FileAttrs, err error) {
	for _, name := range names {
		if !KeepXattr(name) && name != OpaqueAttr && name != DeviceAttr && name != InodeAttr {
			continue
		}
		value, err := get(name)
		if err != nil {
			return FileAttrs{}, err
		}
		switch name {
		case OpaqueAttr:
			a.Opaque = string(value) == "y"
		case DeviceAttr:
			if i, ok := ParseInode(value); ok {
				a.Device = &i
			}
		case InodeAttr:
			if i, ok := ParseInode(value); ok {
				a.Record = &i
			}
		default:
			if a.Keep == nil {
				a.Keep = map[string][]byte{}
			}
			a.Keep[name] = value
		}
	}
	return a, nil
}

// Node is the device node that a file of a tree stands for. Users of a container set
// attributes of their own files and of those that they may write to, so that a mark counts
// only on an empty file that is this process's own and that nobody else may write to.
func (a *FileAttrs) Node(mode, uid uint32, size int64) (Inode, bool) {
	d := a.Device
	if d == nil || !isDevice(d.Mode) || d.Mode&unix.S_IFMT == unix.S_IFCHR && d.Rdev == 0 { // a whiteout is none
		return Inode{}, false
	}
	if mode&unix.S_IFMT != unix.S_IFREG || !d.Fits(mode, size) || !Self().Keeps(mode, uid) {
		return Inode{}, false
	}
	return *d, true
}
