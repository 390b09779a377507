package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MountOptions are a mount's options as mount(8) and runtimes write them,
// sorted by what the kernel does with them.
type MountOptions struct {
	// Set and Clear are MOUNT_ATTR_* flags.
	Set, Clear uint64
	// recursive says that Set applies to the mounts below, too (rro and the like).
	recursive bool
	// rbind takes what is mounted below the source, too.
	bind, rbind bool
	propagation uint64
	// FS are the parameters of the file system.
	FS []string
}

// attrOptions are the options that are flags of one mount.
var attrOptions = map[string]struct{ set, clear uint64 }{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"relatime":    {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_RELATIME},
	"noatime":     {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_NOATIME},
	"strictatime": {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_STRICTATIME},
}

// propagationOptions are what happens to mounts made later on the source.
var propagationOptions = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// ParseMountOptions sorts options. A later one wins over an earlier one.
func ParseMountOptions(options []string) (MountOptions, error) {
	var o MountOptions
	for _, opt := range options {
		name, isRecursive := strings.CutPrefix(opt, "r")
		a, known := attrOptions[opt]
		if !known && isRecursive { // rro, rnosuid ...
			if a, known = attrOptions[name]; known {
				o.recursive = true
			}
		}
		if known {
			o.Set = o.Set&^a.clear | a.set
			o.Clear = o.Clear&^a.set | a.clear
			continue
		}
		if p, ok := propagationOptions[opt]; ok {
			o.propagation = p
			continue
		}
		switch opt {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.rbind = true, true
		case "", "defaults", "async", "norelatime", "z", "Z", "consistent", "cached", "delegated", "nocopy":
		default:
			if strings.ContainsRune(opt, 0) || len(opt) > 255 {
				return o, fmt.Errorf("mount option %.40q: not one that the kernel takes", opt)
			}
			o.FS = append(o.FS, opt)
		}
	}
	return o, nil
}

// IsBind says that the options ask for a bind mount.
func (o MountOptions) IsBind() bool { return o.bind }

// attr is what mount_setattr(2) needs for the flags. The kernel wants the access time modes
// cleared together.
func (o MountOptions) attr() unix.MountAttr {
	a := unix.MountAttr{Attr_set: o.Set, Attr_clr: o.Clear}
	if a.Attr_set&unix.MOUNT_ATTR__ATIME != 0 || a.Attr_clr&unix.MOUNT_ATTR__ATIME != 0 {
		a.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	return a
}
