package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A place is what den thinks of a file system.
type place int

const (
	placeShared  place = iota // locks and renames hold for everyone on this kernel
	placePrivate              // they hold for this container only, or nobody knows
	placeRefused              // they are known not to hold
)

// placeOf judges a file system by its name in sys.FSName.
func placeOf(fs string) place {
	switch fs {
	case "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "bcachefs":
		return placeShared
	case "9p", "nfs", "cifs", "smb", "smb2", "ceph", "afs", "coda", "ocfs2", "ncp", "gfs2", "lustre",
		"gpfs", "vboxsf", "vmhgfs", "fuse":
		return placeRefused
	}
	return placePrivate
}

// checkPlace refuses file systems on which the store's locks are silently no
// locks, and returns the name of the store's.
func (s *Store) checkPlace(unsafe bool) (string, error) {
	fs, err := sys.FSName(s.root)
	if err != nil {
		return "", err
	}
	if s.isBase {
		return fs, s.checkBasePlace(fs)
	}
	if unix.Access(s.root, unix.W_OK) != nil {
		s.readOnly = true
	}
	p := placeOf(fs)
	if fs == "fuse" && isContainerRoot(s.root) {
		p = placePrivate // fuse-overlayfs below a rootless container
	}
	switch {
	case p == placeRefused && !unsafe:
		return fs, fmt.Errorf("its file system is %s, where locks between machines or kernels do not hold; "+
			"set DEN_STORE to a directory on a local disk or a tmpfs: %w", fs, errdefs.ErrFailedPrecondition)
	case p == placeRefused:
		s.notice(fmt.Sprintf("store %s is on %s: nothing else may use it at the same time", s.root, fs))
	case p == placePrivate && fs == "overlay":
		s.notice(fmt.Sprintf("store %s is on this container's own file system and goes with it; "+
			"mount a volume there, or set DEN_STORE to one, to share it", s.root))
	case p == placePrivate:
		s.notice(fmt.Sprintf("store %s is on an unknown file system (%s); only this container should use it", s.root, fs))
	}
	return fs, nil
}

// checkBasePlace is checkPlace for who only reads. One that is part of the
// container's image is nobody's to collect.
func (s *Store) checkBasePlace(fs string) error {
	switch p := placeOf(fs); {
	case p == placeRefused && !(fs == "fuse" && isContainerRoot(s.root)):
		return fmt.Errorf("its file system is %s, where locks between machines or kernels do not hold, so that its owner could remove what is in use; "+
			"leave out --base-store (DEN_BASE_STORE): %w", fs, errdefs.ErrFailedPrecondition)
	case p == placePrivate && fs != "overlay" && fs != "fuse":
		s.notice(fmt.Sprintf("base store %s is on an unknown file system (%s); nobody should collect it meanwhile", s.root, fs))
	}
	return nil
}

// isContainerRoot reports whether dir is on the same file system as /.
func isContainerRoot(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat("/", &b) == nil && a.Dev == b.Dev
}

// imageClass is the class of trees in image form.
const imageClass = "image"

// classFor is the class of a process that wants images, or directories.
func classFor(image bool) (string, error) {
	if image {
		return imageClass, nil
	}
	return ownershipClass()
}

// ownershipClass names the relation of ids on disk to ids in images for this
// process.
func ownershipClass() (string, error) {
	maps := make([]string, 2)
	for i, name := range []string{"uid_map", "gid_map"} {
		b, err := os.ReadFile(filepath.Join("/proc/self", name))
		if errors.Is(err, os.ErrNotExist) {
			b, err = []byte("0 0 4294967295"), nil // a kernel without user namespaces
		}
		if err != nil {
			return "", fmt.Errorf("ownership class: %w", err)
		}
		maps[i] = strings.Join(strings.Fields(string(b)), " ")
	}
	return classOf(maps[0], maps[1], os.Geteuid(), sys.MakesDevices()), nil
}

// classOf tells apart what must not be mixed: owners by the maps, and trees with
// device nodes from those where they are recorded. Ids may be mapped to themselves in a
// user namespace, and CAP_MKNOD may be missing, so that the maps do not tell the latter;
// where ids are mapped otherwise, nobody makes device nodes.
func classOf(uidMap, gidMap string, euid int, devices bool) string {
	const identity = "0 0 4294967295"
	if uidMap != identity || gidMap != identity {
		sum := sha256.Sum256([]byte(uidMap + "\n" + gidMap + "\n"))
		return "m" + hex.EncodeToString(sum[:8])
	}
	class := "0"
	if euid != 0 {
		class = "flat" // chown is not for us: every file is ours
	}
	if !devices {
		class += "r"
	}
	return class
}
