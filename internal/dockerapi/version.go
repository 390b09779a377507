package dockerapi

import (
	"strconv"
	"strings"
)

// A version is one of the API: its minor number, as the major one is always 1.
type version int

const (
	// oldest is what dockerd 25 to 28 answer.
	oldest version = 24
	// newest is the last that github.com/moby/moby/api documents; see its docs directory.
	newest version = 56
)

func (v version) String() string { return "1." + strconv.Itoa(int(v)) }

// parseVersion reads a path's version, "1.41". Like docker it takes any digits and dots.
func parseVersion(s string) (version, error) {
	major, minor, _ := strings.Cut(s, ".")
	minor, _, _ = strings.Cut(minor, ".")
	m, n := atoi(major), atoi(minor)
	switch {
	case m < 1 || m == 1 && version(n) < oldest:
		return 0, invalid("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", s, oldest)
	case m > 1 || version(n) > newest:
		return 0, invalid("client version %s is too new. Maximum supported API version is %s", s, newest)
	}
	return version(n), nil
}

// atoi is the number in s, 0 if it is none.
func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil && len(s) > 9 {
		return 1 << 30 // digits only, too many of them
	}
	return n
}

// isVersion says that a path's segment is a version.
func isVersion(segment string) bool {
	digits, ok := strings.CutPrefix(segment, "v")
	return ok && digits != "" && strings.Trim(digits, "0123456789.") == ""
}
