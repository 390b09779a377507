package image

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// predicate decides whether a summary is in a list. A reference filter takes
// those names off it that do not match, as docker images does.
type predicate func(*Summary) bool

// filter compiles docker's filters. Keys must all hold, of the values of one
// key any; but every label must be there, as docker has it.
func (m *Images) filter(ctx context.Context, filters map[string][]string) (predicate, error) {
	var all []predicate
	for key, values := range filters {
		var p predicate
		var err error
		switch key {
		case "dangling":
			p, err = dangling(values)
		case "label":
			p = labelled(values, true)
		case "label!":
			p = labelled(values, false)
		case "reference":
			p, err = referenced(values)
		case "before", "since":
			p, err = m.relative(ctx, key, values)
		case "until":
			p, err = until(values, time.Now())
		default:
			err = fmt.Errorf("filter %q: not known, want reference, dangling, label, before, since or until: %w",
				key, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return func(s *Summary) bool {
		for _, p := range all {
			if !p(s) {
				return false
			}
		}
		return true
	}, nil
}

func dangling(values []string) (predicate, error) {
	want := map[bool]bool{}
	for _, v := range values {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, fmt.Errorf("filter dangling=%s: want true or false: %w", v, errdefs.ErrInvalidArgument)
		}
		want[b] = true
	}
	return func(s *Summary) bool { return want[s.Dangling()] }, nil
}

func labelled(values []string, want bool) predicate {
	return func(s *Summary) bool {
		for _, v := range values {
			key, value, exact := strings.Cut(v, "=")
			got, ok := s.Labels[key]
			if (ok && (!exact || got == value)) != want {
				return false
			}
		}
		return true
	}
}

func referenced(patterns []string) (predicate, error) {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("filter reference=%s: %w: %w", p, err, errdefs.ErrInvalidArgument)
		}
	}
	differs := func(name string) bool {
		return !slices.ContainsFunc(patterns, func(p string) bool { return matchesName(p, name) })
	}
	return func(s *Summary) bool {
		s.Tags = slices.DeleteFunc(s.Tags, differs)
		s.Digests = slices.DeleteFunc(s.Digests, func(d string) bool {
			repo, _, _ := strings.Cut(d, "@")
			return differs(d) && !slices.ContainsFunc(s.Tags, func(t string) bool { return strings.HasPrefix(t, repo+":") })
		})
		return !s.Dangling()
	}, nil
}

// relative compares with the times of images that are here.
func (m *Images) relative(ctx context.Context, key string, values []string) (predicate, error) {
	var times []time.Time
	for _, v := range values {
		img, err := m.local(ctx, v, nil)
		if err != nil {
			return nil, fmt.Errorf("filter %s=%s: %w", key, v, err)
		}
		c, err := img.Parse()
		if err != nil {
			return nil, err
		}
		if c.Created != nil {
			times = append(times, *c.Created)
		}
	}
	return func(s *Summary) bool {
		return slices.ContainsFunc(times, func(t time.Time) bool {
			return key == "before" && s.Created.Before(t) || key == "since" && s.Created.After(t)
		})
	}, nil
}

// until takes what is older than a time, or than a duration before now.
func until(values []string, now time.Time) (predicate, error) {
	var latest time.Time
	for _, v := range values {
		t, err := parseWhen(v, now)
		if err != nil {
			return nil, err
		}
		if t.After(latest) {
			latest = t
		}
	}
	return func(s *Summary) bool { return s.Created.Before(latest) }, nil
}

func parseWhen(v string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, now.Location()); err == nil {
			return t, nil
		}
	}
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return time.Unix(n, 0), nil
	}
	return time.Time{}, fmt.Errorf("filter until=%s: want a duration such as 24h, or a time: %w", v, errdefs.ErrInvalidArgument)
}
