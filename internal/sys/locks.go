package sys

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A HeldLock is one line of /proc/locks: a lock, or somebody waiting for one.
type HeldLock struct {
	// Kind is FLOCK, POSIX, OFDLCK or LEASE.
	Kind      string
	Exclusive bool
	Waiting   bool
	// PID is who took the lock, as this process's pid namespace numbers it; 0
	// is a process of another namespace. The holder may have passed it on.
	PID int
	// Device and Inode name the locked file. Device is that of the file system
	// (as in /proc/self/mountinfo), which on btrfs is not what stat(2) says.
	Device string
	Inode  uint64
}

// maxLocks bounds how many lines of /proc/locks are read.
const maxLocks = 1 << 20

// HeldLocks reads /proc/locks: the file locks of this kernel that this pid
// namespace may see.
func HeldLocks() ([]HeldLock, error) {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseLocks(f)
}

// InitialPIDNamespace reports whether this process is in the kernel's first pid
// namespace, from which all processes are seen; when in doubt it is not.
func InitialPIDNamespace() bool {
	// PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
	const initialInode = 0xEFFFFFFC
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == initialInode
}

// parseLocks reads "1: FLOCK  ADVISORY  WRITE 708 08:01:13 0 EOF", with "->"
// after the number of who waits. What it does not understand it leaves out.
func parseLocks(r io.Reader) ([]HeldLock, error) {
	var locks []HeldLock
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(locks) < maxLocks {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		l := HeldLock{Waiting: fields[1] == "->"}
		if fields = fields[1:]; l.Waiting {
			fields = fields[1:]
		}
		if len(fields) < 5 {
			continue
		}
		where := strings.Split(fields[4], ":")
		pid, err := strconv.Atoi(fields[3])
		if len(where) != 3 || err != nil {
			continue
		}
		major, err1 := strconv.ParseUint(where[0], 16, 32)
		minor, err2 := strconv.ParseUint(where[1], 16, 32)
		inode, err3 := strconv.ParseUint(where[2], 10, 64)
		if errors.Join(err1, err2, err3) != nil {
			continue
		}
		l.Kind, l.Exclusive, l.PID = fields[0], fields[2] == "WRITE", max(pid, 0)
		l.Device, l.Inode = fmt.Sprintf("%d:%d", major, minor), inode
		locks = append(locks, l)
	}
	return locks, lines.Err()
}

// MountDevice names, as "major:minor", the device of the file system that is
// mounted where path is. It differs from what stat(2) says on btrfs.
func MountDevice(path string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return "", &os.PathError{Op: "statx", Path: path, Err: err}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	id := strconv.FormatUint(st.Mnt_id, 10)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[0] == id {
			return fields[2], nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor), nil
}
