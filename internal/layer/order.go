package layer

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxPath is the longest path of an entry: the kernel's PATH_MAX.
	maxPath = 4096
	// maxName is the longest component, NAME_MAX.
	maxName = 255
	// maxTarget is the longest target of a symbolic link.
	maxTarget = 4095
)

// ComparePaths orders the paths of entries as a canonical tar has them, which
// is how a depth-first walk meets them: the root, then names in byte order and
// each directory's content right behind it. A slash is less than any other byte.
func ComparePaths(a, b string) int {
	if a == "." || b == "." {
		return strings.Compare(rootEmpty(a), rootEmpty(b))
	}
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		switch {
		case x == y:
			continue
		case x == '/':
			return -1
		case y == '/' || x > y:
			return 1
		default:
			return -1
		}
	}
	return len(a) - len(b)
}

func rootEmpty(p string) string {
	if p == "." {
		return ""
	}
	return p
}

// dirOf is the directory of a clean relative path, "" for one in the root.
func dirOf(p string) string {
	return p[:max(strings.LastIndexByte(p, '/'), 0)]
}

// baseOf is the last component of a clean relative path.
func baseOf(p string) string {
	return p[strings.LastIndexByte(p, '/')+1:]
}

// joinPath puts a name below a directory that is "" for the root.
func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// cleanPath makes a name from a tar relative to the root, as Docker and
// containerd do: a leading slash goes, "." and inner ".." are resolved by
// name. What would leave the root is an error. The root is ".".
func cleanPath(name string) (string, error) {
	switch {
	case name == "":
		return "", invalid("empty name")
	case len(name) > maxPath:
		return "", invalid("name %.40q... is %d bytes long, the limit is %d", name, len(name), maxPath)
	case strings.IndexByte(name, 0) >= 0:
		return "", invalid("name %.80q holds a zero byte", name)
	}
	if isClean(name) {
		return name, checkNames(name)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return "", invalid("name %.80q leaves the root", name)
			}
			parts = parts[:len(parts)-1]
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return ".", nil
	}
	p := strings.Join(parts, "/")
	return p, checkNames(p)
}

// isClean reports whether no component is empty, "." or "..": true for
// nearly every name, and cheaper than to build it anew.
func isClean(name string) bool {
	for rest := name; ; {
		part, more, found := strings.Cut(rest, "/")
		if part == "" || part == "." || part == ".." {
			return false
		}
		if !found {
			return true
		}
		rest = more
	}
}

func checkNames(p string) error {
	for start, i := 0, 0; ; i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		if i-start > maxName {
			return invalid("name %.40q... has a component longer than %d bytes", p[start:], maxName)
		}
		if i >= len(p) {
			return nil
		}
		start = i + 1
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
