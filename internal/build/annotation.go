package build

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"den/internal/oci"
)

// annotations of a build, by where they go.
type annotations struct {
	index    map[string]string
	manifest map[string]string            // of each platform
	platform map[string]map[string]string // of one, by its ID
}

// parseAnnotations reads buildx's "type[platform]:key=value".
func parseAnnotations(values []string) (*annotations, error) {
	a := &annotations{index: map[string]string{}, manifest: map[string]string{}, platform: map[string]map[string]string{}}
	for _, s := range values {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, invalid("invalid annotation %q, want key=value", s)
		}
		types, key := "manifest", k
		// A key may contain a colon; a type list before one is known words only.
		if before, after, ok := strings.Cut(k, ":"); ok && isAnnotationTypes(before) {
			types, key = before, after
		}
		for t := range strings.SplitSeq(types, ",") {
			if err := a.add(t, key, v); err != nil {
				return nil, invalid("annotation %q: %w", s, err)
			}
		}
	}
	return a, nil
}

func isAnnotationTypes(s string) bool {
	for t := range strings.SplitSeq(s, ",") {
		t, _, _ = strings.Cut(t, "[")
		switch t {
		case "manifest", "index", "manifest-descriptor", "index-descriptor":
		default:
			return false
		}
	}
	return true
}

func (a *annotations) add(kind, key, value string) error {
	kind, rest, has := strings.Cut(kind, "[")
	var id string
	if has {
		name, closed := strings.CutSuffix(rest, "]")
		p, err := platforms.Parse(name)
		if err != nil || !closed {
			return fmt.Errorf("platform %q is not known", name)
		}
		id = platforms.FormatAll(platforms.Normalize(p))
	}
	switch {
	case kind == "index" && id == "":
		a.index[key] = value
	case kind == "manifest" && id == "":
		a.manifest[key] = value
	case kind == "manifest":
		if a.platform[id] == nil {
			a.platform[id] = map[string]string{}
		}
		a.platform[id][key] = value
	default:
		return fmt.Errorf("annotations of a %s are not supported: %w", kind, errdefs.ErrNotImplemented)
	}
	return nil
}

// of returns the annotations of a platform's manifest.
func (a *annotations) of(p oci.Platform) map[string]string {
	out := maps.Clone(a.manifest)
	maps.Copy(out, a.platform[platforms.FormatAll(platforms.Normalize(p))])
	if len(out) == 0 {
		return nil
	}
	return out
}
