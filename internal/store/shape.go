package store

import "strings"

const (
	lowerCase = "abcdefghijklmnopqrstuvwxyz"
	upperCase = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits    = "0123456789"
	alnum     = upperCase + lowerCase + digits
)

// A shape is what a name in the store may look like: so many bytes, the first
// and the others of these. A regular expression with such counts takes longer
// to compile than everything else that every command pays at its start.
type shape struct {
	least, most int
	first, rest string
}

// matches reports whether s has the shape.
func (p shape) matches(s string) bool {
	if len(s) < p.least || len(s) > p.most {
		return false
	}
	for i := range len(s) {
		set := p.rest
		if i == 0 {
			set = p.first
		}
		if strings.IndexByte(set, s[i]) < 0 {
			return false
		}
	}
	return true
}
