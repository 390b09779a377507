package daemon

import (
	"os"

	"golang.org/x/sys/unix"

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

// ownsTrees says that the process can make trees with all their owners and modes
// without a user namespace: root with capabilities that Docker leaves to every
// container. Device nodes are recorded where they cannot be made, and file
// capabilities that cannot be set are an error.
func ownsTrees(c sys.CapSet) bool {
	if os.Geteuid() != 0 {
		return false
	}
	for _, n := range []int{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID} {
		if !c.Has(n) {
			return false
		}
	}
	return true
}

func errText(e unix.Errno) string {
	if e == 0 {
		return ""
	}
	return e.Error()
}
