package dockerapi

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// filters are docker's: all keys must hold, and of one key any value, but for labels,
// of which all must.
type filters map[string][]string

// filters reads the query's filters and refuses keys that are not in known.
func (c *call) filters(known ...string) (filters, error) {
	f, err := parseFilters(c.query.Get("filters"))
	if err != nil {
		return nil, err
	}
	for key := range f {
		if !slices.Contains(known, key) {
			return nil, invalid("invalid filter '%s'", key)
		}
	}
	return f, nil
}

// parseFilters reads both spellings: {"key":{"value":true}} and {"key":["value"]}.
func parseFilters(s string) (filters, error) {
	f := filters{}
	if s == "" {
		return f, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s), &raw); err != nil {
		return nil, invalid("invalid filter: %v", err)
	}
	for key, values := range raw {
		var list []string
		if err := json.Unmarshal(values, &list); err != nil {
			var set map[string]bool
			if err := json.Unmarshal(values, &set); err != nil {
				return nil, invalid("invalid filter: %v", err)
			}
			for v, on := range set {
				if on {
					list = append(list, v)
				}
			}
		}
		if len(list) > 0 {
			slices.Sort(list)
			f[key] = slices.Compact(list)
		}
	}
	return f, nil
}

// has says that the key is asked for.
func (f filters) has(key string) bool { return len(f[key]) > 0 }

// exact says that value is one of those asked for, or none is.
func (f filters) exact(key, value string) bool {
	return !f.has(key) || slices.Contains(f[key], value)
}

// fuzzy is exact, or one of those asked for begins value.
func (f filters) fuzzy(key, value string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(want string) bool { return strings.HasPrefix(value, want) })
}

// matches says that value contains one of the regular expressions asked for, as
// docker matches names. An expression that is none is compared as it is.
func (f filters) matches(key, value string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(want string) bool {
		re, err := regexp.Compile(want)
		return value == want || err == nil && re.MatchString(value)
	})
}

// labels says that labels has all that key asks for: "name" or "name=value".
func (f filters) labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		name, value, valued := strings.Cut(want, "=")
		got, ok := labels[name]
		if !ok || valued && got != value {
			return false
		}
	}
	return true
}

// boolean reads a key that is a flag; missing if it is not asked for.
func (f filters) boolean(key string, missing bool) (bool, error) {
	if !f.has(key) {
		return missing, nil
	}
	on, off := false, false
	for _, v := range f[key] {
		switch v {
		case "1", "true", "True", "TRUE", "t", "T":
			on = true
		case "0", "false", "False", "FALSE", "f", "F":
			off = true
		default:
			return false, invalid("invalid filter '%s=%s'", key, f[key])
		}
	}
	if on == off {
		return false, invalid("invalid filter '%s=%s'", key, f[key])
	}
	return on, nil
}
