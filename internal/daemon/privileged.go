package daemon

import (
	"os"

	"golang.org/x/sys/unix"

	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sys"
)

// privileged says that the process can very likely mount, and do what root is
// expected to: root with CAP_SYS_ADMIN. It is a shortcut that spares the common case a probe before
// the store is open; the real trial follows when something is to be run.
func privileged() bool {
	if os.Geteuid() != 0 {
		return false
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	effective := sys.CapSet(data[0].Effective) // the expected ones are among the first 32
	return effective.Has(unix.CAP_SYS_ADMIN) && sandbox.Lacks(effective) == 0
}

// takesOverlays says that an overlay in dir works: the shortcut's part that is about storage. It
// is tried where the file system is one that can have them, which costs a millisecond.
func takesOverlays(dir string) bool {
	fs, err := sys.FSName(dir)
	return err == nil && (fs == "ext4" || fs == "xfs" || fs == "btrfs") && probe.Overlay(dir) == 0
}

// refused is a refusal in words, with the module that may be behind it; "" for none.
func refused(s probe.Security, e unix.Errno) string {
	if e == 0 {
		return ""
	}
	return sandbox.Explain(s, e).Error()
}
