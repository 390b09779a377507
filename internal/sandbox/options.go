package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions are a mount's options as mount(8) and runtimes write them,
// sorted by what the kernel does with them.
type mountOptions struct {
	// set and clear are MOUNT_ATTR_* flags.
	set, clear uint64
	// recursive says that set applies to the mounts below, too (rro and the like).
	recursive bool
	// rbind takes what is mounted below the source, too.
	bind, rbind bool
	propagation uint64
	// fs are the parameters of the file system.
	fs []string
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

// parseMountOptions sorts options. A later one wins over an earlier one.
func parseMountOptions(options []string) (mountOptions, error) {
	var o mountOptions
	for _, opt := range options {
		name, isRecursive := strings.CutPrefix(opt, "r")
		a, known := attrOptions[opt]
		if !known && isRecursive { // rro, rnosuid ...
			if a, known = attrOptions[name]; known {
				o.recursive = true
			}
		}
		if known {
			o.set = o.set&^a.clear | a.set
			o.clear = o.clear&^a.set | a.clear
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
			o.fs = append(o.fs, opt)
		}
	}
	return o, nil
}

// attr is what mount_setattr(2) needs for the flags. The kernel wants the access time modes
// cleared together.
func (o mountOptions) attr() unix.MountAttr {
	a := unix.MountAttr{Attr_set: o.set, Attr_clr: o.clear}
	if a.Attr_set&unix.MOUNT_ATTR__ATIME != 0 || a.Attr_clr&unix.MOUNT_ATTR__ATIME != 0 {
		a.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	return a
}
