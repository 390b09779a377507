// Package probe finds out, by trying, what the outer container allows.
//
// No runtime is recognised and no version is read: each fact is the result of
// the system call in question, made in a child that is thrown away, so that the
// calling process stays as it is. Gather takes a few milliseconds.
package probe

import (
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// Facts is what Gather found. A unix.Errno of 0 means that the thing works.
type Facts struct {
	// UID is the effective user id, CapEff and CapBnd the effective and
	// bounding capability sets.
	UID            int
	CapEff, CapBnd sys.CapSet
	NoNewPrivs     bool
	// InUserns says that the process is not in the initial user namespace, or
	// at least does not have all its ids.
	InUserns bool
	// Kernel is the release, for messages only.
	Kernel string

	// Namespaces: clone(NEWNS|NEWPID|NEWIPC|NEWUTS) without a user namespace.
	Namespaces unix.Errno
	// Mount: fsopen, fsmount and move_mount of a tmpfs in there.
	Mount unix.Errno
	// Overlay: an overlay with userxattr and its upper directory below dir.
	Overlay unix.Errno
	// Mknod: a device node on a tmpfs.
	Mknod unix.Errno
	// FreshProc: a proc of a new pid namespace.
	FreshProc unix.Errno

	// Userns: clone(NEWUSER|NEWNS). The next three are the trials above inside
	// of it, with one id.
	Userns          unix.Errno
	UsernsMount     unix.Errno
	UsernsOverlay   unix.Errno
	UsernsFreshProc unix.Errno

	// IDs is how a range of ids can be mapped.
	IDs IDRange

	// FSType names the file system of dir ("ext4", "overlay"); Reflink says
	// that it shares blocks between files.
	FSType  string
	Reflink unix.Errno

	// Cgroup is 0 (none), 1 or 2.
	Cgroup int
	// CgroupErr says why limits cannot be set; "" if they can.
	CgroupErr string

	// Settings that forbid user namespaces, as found: name=value.
	Settings []string
}

// IDRange says how a range of ids can be mapped into a user namespace.
type IDRange struct {
	// Own says that the process has CAP_SETUID and CAP_SETGID over more than
	// one id and maps by itself.
	Own bool
	// UIDMap and GIDMap are the lines to write or to give to the helpers.
	UIDMap, GIDMap []IDMap
	// Newuidmap and Newgidmap are the helpers' paths; "" where not found.
	Newuidmap, Newgidmap string
	// Missing says in a sentence why there is no range; "" if there is one.
	Missing string
}

// IDMap is one line of a uid_map or gid_map.
type IDMap = sys.IDMap
