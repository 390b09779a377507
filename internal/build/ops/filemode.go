package ops

import (
	"os"

	"golang.org/x/sys/unix"
)

// goMode is a mode of stat(2) as package os has it.
func goMode(m uint32) os.FileMode {
	out := os.FileMode(m & 0o777)
	if m&unix.S_ISUID != 0 {
		out |= os.ModeSetuid
	}
	if m&unix.S_ISGID != 0 {
		out |= os.ModeSetgid
	}
	if m&unix.S_ISVTX != 0 {
		out |= os.ModeSticky
	}
	if m&unix.S_IFMT == unix.S_IFDIR {
		out |= os.ModeDir // "X" depends on it
	}
	return out
}

func unixPerm(m os.FileMode) uint32 {
	out := uint32(m.Perm())
	if m&os.ModeSetuid != 0 {
		out |= unix.S_ISUID
	}
	if m&os.ModeSetgid != 0 {
		out |= unix.S_ISGID
	}
	if m&os.ModeSticky != 0 {
		out |= unix.S_ISVTX
	}
	return out
}
