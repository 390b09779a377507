package daemon

import (
	"os"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// privileged says that the process can very likely mount: root with
// CAP_SYS_ADMIN. It is a shortcut that spares the common case a probe before
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
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
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
