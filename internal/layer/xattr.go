package layer

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

const (
	// opaqueAttr marks a directory that hides the ones below it; the flavour
	// of overlay mounts with the option userxattr.
	opaqueAttr = "user.overlay.opaque"
	// deviceAttr on an empty regular file says which device node it stands
	// for: "c 1:3".
	deviceAttr = "user.den.device"
	// capabilityAttr holds file capabilities.
	capabilityAttr = "security.capability"
	// paxXattr precedes the name of an extended attribute in a PAX record.
	paxXattr = "SCHILY.xattr."

	// maxXattrs bounds the attributes of one entry.
	maxXattrs = 256
)

// keepXattr says which extended attributes belong to an entry, on the way into
// a tar and out of one. Labels and access lists are the host's (SELinux, IMA,
// a default ACL on the store), as for Docker and BuildKit. The bookkeeping of
// overlay file systems and of den would change what other entries mean.
func keepXattr(name string) bool {
	if name == capabilityAttr {
		return true
	}
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && len(name) <= maxName &&
		!strings.HasPrefix(name, "user.overlay.") && !strings.HasPrefix(name, "user.den.")
}

// paxXattrs takes an entry's attributes out of its PAX records.
func paxXattrs(records map[string]string) (map[string][]byte, error) {
	var xattrs map[string][]byte
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepXattr(name) {
			continue
		}
		if len(value) > sys.MaxXattr {
			return nil, invalid("extended attribute %.80q is %d bytes long, the limit is %d", name, len(value), sys.MaxXattr)
		}
		if len(xattrs) == maxXattrs {
			return nil, invalid("more than %d extended attributes", maxXattrs)
		}
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		xattrs[name] = []byte(value)
	}
	return xattrs, nil
}

// attrs is what the extended attributes of a file in a tree say.
type attrs struct {
	keep   map[string][]byte
	opaque bool
	device string
}

// readAttrs sorts the attributes that list found.
func readAttrs(names []string, get func(name string) ([]byte, error)) (a attrs, err error) {
	for _, name := range names {
		if !keepXattr(name) && name != opaqueAttr && name != deviceAttr {
			continue
		}
		value, err := get(name)
		if err != nil {
			return attrs{}, err
		}
		switch name {
		case opaqueAttr:
			a.opaque = string(value) == "y"
		case deviceAttr:
			a.device = string(value)
		default:
			if a.keep == nil {
				a.keep = map[string][]byte{}
			}
			a.keep[name] = value
		}
	}
	return a, nil
}

// formatDevice is the value of deviceAttr.
func formatDevice(mode uint32, rdev uint64) []byte {
	kind := "c "
	if mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b "
	}
	return []byte(kind + strconv.FormatUint(uint64(unix.Major(rdev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(rdev)), 10))
}

// parseDevice reads formatDevice's text: the type bits and the number.
func parseDevice(text string) (kind uint32, rdev uint64, ok bool) {
	numbers, isChar := strings.CutPrefix(text, "c ")
	kind = unix.S_IFCHR
	if !isChar {
		kind = unix.S_IFBLK
		if numbers, ok = strings.CutPrefix(text, "b "); !ok {
			return 0, 0, false
		}
	}
	major, minor, _ := strings.Cut(numbers, ":")
	a, err1 := strconv.ParseUint(major, 10, 12)
	b, err2 := strconv.ParseUint(minor, 10, 20)
	if err1 != nil || err2 != nil || (isChar && a == 0 && b == 0) {
		return 0, 0, false
	}
	return kind, unix.Mkdev(uint32(a), uint32(b)), true
}
