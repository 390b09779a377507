package dockerapi

import (
	"strconv"
	"strings"
	"time"
)

// isTrue reads a flag as docker does: what is not a word for no is yes.
func isTrue(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// flag is the query's flag name, false if it is missing.
func (c *call) flag(name string) bool { return isTrue(c.query.Get(name)) }

// flagOr is the query's flag name, missing if it is missing.
func (c *call) flagOr(name string, missing bool) bool {
	if !c.query.Has(name) {
		return missing
	}
	return c.flag(name)
}

// number is the query's number name, missing if there is none or it is empty.
func (c *call) number(name string, missing int) (int, error) {
	s := c.query.Get(name)
	if s == "" {
		return missing, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, invalid("%s: invalid number %q", name, s)
	}
	return n, nil
}

// size reads a terminal's size, as resize sends it. Docker takes any 32 bits.
func (c *call) size() (height, width uint16, err error) {
	for _, f := range []struct {
		name string
		to   *uint16
	}{{"h", &height}, {"w", &width}} {
		n, err := strconv.ParseUint(c.query.Get(f.name), 10, 32)
		if err != nil {
			return 0, 0, invalid("invalid resize %s: %q", f.name, c.query.Get(f.name))
		}
		*f.to = uint16(min(n, 1<<16-1))
	}
	return height, width, nil
}

// timestamp reads a time of docker's queries: seconds since 1970 with up to nine
// digits after the dot, RFC 3339, or a duration before now. "" and "0" are the zero time.
func timestamp(s string, now time.Time) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	whole, fraction, dot := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, invalid("invalid time %q", s)
	}
	if !dot {
		return time.Unix(seconds, 0), nil
	}
	if len(fraction) == 0 || len(fraction) > 9 || strings.Trim(fraction, "0123456789") != "" {
		return time.Time{}, invalid("invalid time %q", s)
	}
	nanos, err := strconv.ParseInt(fraction+strings.Repeat("0", 9-len(fraction)), 10, 64)
	if err != nil {
		return time.Time{}, invalid("invalid time %q", s)
	}
	return time.Unix(seconds, nanos), nil
}
