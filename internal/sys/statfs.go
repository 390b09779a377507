package sys

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fsNames are the file systems that den decides by, by their statfs(2) magic.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4", // ext2 and ext3 share it
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	0x2fc12fc1:                 "zfs",
	0xca451a4e:                 "bcachefs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.FUSE_SUPER_MAGIC:      "fuse", // virtiofs too
	unix.V9FS_MAGIC:            "9p",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.CIFS_SUPER_MAGIC:      "cifs",
	unix.SMB2_SUPER_MAGIC:      "smb2",
	unix.SMB_SUPER_MAGIC:       "smb",
	unix.CEPH_SUPER_MAGIC:      "ceph",
	unix.AFS_SUPER_MAGIC:       "afs",
	unix.AFS_FS_MAGIC:          "afs",
	unix.CODA_SUPER_MAGIC:      "coda",
	unix.OCFS2_SUPER_MAGIC:     "ocfs2",
	unix.NCP_SUPER_MAGIC:       "ncp",
	0x01161970:                 "gfs2",
	0x0bd00bd0:                 "lustre",
	0x47504653:                 "gpfs",
	0x786f4256:                 "vboxsf",
	0xbacbacbc:                 "vmhgfs",
}

// FSName names the file system that holds path, as mount(8) would; one that
// it does not know is named by its magic number, "0x1234".
func FSName(path string) (string, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return "", &os.PathError{Op: "statfs", Path: path, Err: err}
		}
	}
	// The field is 32 bits wide on some architectures, and signed.
	magic := int64(uint32(st.Type))
	if name, ok := fsNames[magic]; ok {
		return name, nil
	}
	return fmt.Sprintf("%#x", magic), nil
}

// BootID is the kernel's random name for its present run. It tells a reboot,
// and another kernel, from a mere restart of the process; unlike a clock it
// can not be set.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" || strings.ContainsAny(id, "/\x00") {
		return "", fmt.Errorf("boot id: malformed: %.80q", id)
	}
	return id, nil
}

// Syncfs writes everything that waits in memory for f's file system to disk.
func Syncfs(f *os.File) error {
	for {
		err := unix.Syncfs(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "syncfs", Path: f.Name(), Err: err}
		}
	}
}

// MountID tells the mounts of this mount namespace apart; 0 if path cannot be
// looked at, and before Linux 5.8.
func MountID(path string) uint64 {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st) != nil {
		return 0
	}
	return st.Mnt_id
}

// initialPIDNamespace is what /proc/self/ns/pid shows in the initial process-id
// namespace (PROC_PID_INIT_INO, since Linux 3.8).
const initialPIDNamespace = "pid:[4026531836]"

// InInitialPIDNamespace reports whether the process sees the ids of the machine, as
// one in a container hardly ever does.
func InInitialPIDNamespace() bool {
	link, err := os.Readlink("/proc/self/ns/pid")
	return err != nil || link == initialPIDNamespace
}
