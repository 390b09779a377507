package ops

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// appendTarsum appends the header that the content hash of a path begins with:
// docker's tarsum version 1, without the name and the time. The content of a
// regular file follows it.
func appendTarsum(b []byte, e *oci.Entry) []byte {
	num := func(key string, n uint64) {
		b = append(b, key...)
		b = strconv.AppendUint(b, n, 10)
	}
	mode, flag, size, link := uint64(e.Mode&0o7777), byte('0'), uint64(0), ""
	var major, minor uint32
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		size = uint64(e.Size)
	case unix.S_IFDIR:
		flag = '5'
	case unix.S_IFLNK:
		flag, mode, link = '2', mode|0o777, e.Link
	case unix.S_IFCHR:
		flag, major, minor = '3', unix.Major(e.Rdev), unix.Minor(e.Rdev)
	case unix.S_IFBLK:
		flag, major, minor = '4', unix.Major(e.Rdev), unix.Minor(e.Rdev)
	case unix.S_IFIFO:
		flag = '6'
	}
	b = append(b, "name"...)
	num("mode", mode)
	num("uid", uint64(e.UID))
	num("gid", uint64(e.GID))
	num("size", size)
	b = append(b, "typeflag"...)
	b = append(b, flag)
	b = append(b, "linkname"...)
	b = append(b, link...)
	b = append(b, "unamegname"...)
	num("devmajor", uint64(major))
	num("devminor", uint64(minor))
	for _, k := range tarsumXattrs(e.Xattrs) {
		b = append(b, k...)
		b = append(b, e.Xattrs[k]...)
	}
	return b
}

// tarsumXattrs lists the attributes that count, sorted.
func tarsumXattrs(attrs map[string][]byte) []string {
	if len(attrs) == 0 {
		return nil
	}
	keys := make([]string, 0, len(attrs))
	for k := range attrs {
		if tarsumXattr(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// tarsumXattr says whether an attribute counts: the labels and access lists
// that a machine puts on its files say nothing about them.
func tarsumXattr(key string) bool {
	return key == "security.capability" ||
		!strings.HasPrefix(key, "security.") && !strings.HasPrefix(key, "system.") && !strings.HasPrefix(key, "com.apple.")
}
