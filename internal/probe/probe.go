// Package probe finds out, by trying, what the outer container allows.
//
// No runtime is recognised and no version is read: each fact is the result of
// the system call in question, made in a child that is thrown away, so that the
// calling process stays as it is. What is tried is what package sandbox does, so that
// a rung that is chosen is one that runs. Gather takes a few milliseconds.
package probe

import (
	"fmt"

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
	// InUserns says that the process is not in the initial user namespace, OneID
	// that there is a single id in its own.
	InUserns, OneID bool
	// Kernel is the release, for messages only.
	Kernel string

	// Trial is what the process may do as it is.
	Trial
	// Userns is what it may do inside a user namespace that it makes, mapped as
	// IDs says, or with one id where that is missing.
	Userns Trial

	// IDs is how a range of ids can be mapped.
	IDs IDRange

	// FSType names the file system of dir ("ext4", "overlay"); Reflink says
	// that it shares blocks between files.
	FSType  string
	Reflink unix.Errno
	// Untried says why an overlay could not be tried, which another time may work: dir is full
	// or cannot be written. "" if it was tried.
	Untried string
	// Unmerged says, in a sentence, that nothing merges layers on disk, and why; "" if
	// something does. Gather leaves it empty: who knows the storage drivers says it.
	Unmerged string
	// NoExec says that nothing below dir can be executed, but through an overlay.
	NoExec bool

	// Cgroup is 0 (none), 1 or 2.
	Cgroup int
	// CgroupErr says why limits cannot be set; "" if they can.
	CgroupErr string
	// BlockWeight says that a cgroup can have a weight at block devices.
	BlockWeight bool

	// Settings that forbid user namespaces, as found: name=value.
	Settings []string

	// Chroot is what the rung chroot needs.
	Chroot Chroot
	// Security is what confines the process.
	Security Security
	// Sentry is whether the user-space kernel runs here; nil where there is none to
	// try. Gather leaves it nil: trying takes longer than all the rest.
	Sentry *SentryTrial
}

// Chroot says what a process may do with the file system that it has.
type Chroot struct {
	// Refused is chroot(2)'s answer, to the process as it is.
	Refused unix.Errno
	// Devices: a device node made below dir, and opened.
	Devices unix.Errno
}

// A SentryTrial is the answer of the user-space kernel; zero before anybody asked.
type SentryTrial struct {
	// Platform is how it catches the system calls of what runs in it: "systrap"
	// or "ptrace".
	Platform string
	// Err says why it does not run; nil if it does.
	Err error
}

// A Trial is what a throw-away process could do of what a sandbox does.
type Trial struct {
	// Refused is the first call that failed and that no sandbox can do without; nil
	// if one can run.
	Refused *Refusal
	// Overlay: an overlay with userxattr and its upper directory below dir.
	Overlay unix.Errno
	// Mknod: a device node on a tmpfs.
	Mknod unix.Errno
	// FreshProc: a proc of a new pid namespace.
	FreshProc unix.Errno

	mapErr error // why the ids could not be mapped
	chroot Chroot
}

// A Refusal is a call that the outer container does not allow.
type Refusal struct {
	// What it was for, and the name of the call.
	What, Call string
	Errno      unix.Errno
	// Unfinished says that the answer did not come in time, so that nobody refused.
	Unfinished bool
}

// Error is for people.
func (r *Refusal) Error() string {
	if r.Call == "" {
		return r.What
	}
	return fmt.Sprintf("%s: %s: %v", r.What, r.Call, r.Errno)
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
	// Missing says in a sentence why there is no range, or why mapping it failed
	// when Gather tried; "" if there is one.
	Missing string
}

// IDMap is one line of a uid_map or gid_map.
type IDMap = sys.IDMap
