package build

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/platforms"

	"den/internal/build/dockerfile"
	"den/internal/oci"
)

// annotations of a build, by where they go.
type annotations struct {
	// index has those of the index itself, indexDescriptor those of whatever
	// names the index: an OCI layout, the metadata file.
	index, indexDescriptor map[string]string
	// By platform, as platforms.FormatAll writes it; empty is each of them.
	// descriptor goes where the manifest is named: into the index, a layout.
	manifest, descriptor map[string]map[string]string
}

// parseAnnotations reads buildx's "type[platform]:key=value".
func parseAnnotations(values []string) (*annotations, error) {
	a := &annotations{
		index: map[string]string{}, indexDescriptor: map[string]string{},
		manifest: map[string]map[string]string{}, descriptor: map[string]map[string]string{},
	}
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
	var byPlatform map[string]map[string]string
	switch kind {
	case "index", "index-descriptor":
		if has {
			return fmt.Errorf("an index has no platform")
		}
		if kind == "index" {
			a.index[key] = value
		} else {
			a.indexDescriptor[key] = value
		}
		return nil
	case "manifest":
		byPlatform = a.manifest
	case "manifest-descriptor":
		byPlatform = a.descriptor
	default:
		return fmt.Errorf("type %q is not known, want manifest, index, manifest-descriptor or index-descriptor", kind)
	}
	if byPlatform[id] == nil {
		byPlatform[id] = map[string]string{}
	}
	byPlatform[id][key] = value
	return nil
}

// check refuses what would be lost in silence, as BuildKit does
// (exporter/containerimage/writer.go, Commit).
func (a *annotations) check(o output, results []dockerfile.Image) error {
	if o.format.DockerTypes && (a.wantIndex() || len(a.descriptor) > 0) {
		return invalid(`cannot export annotations with "oci-mediatypes=false"`)
	}
	built := map[string]bool{"": true}
	for _, r := range results {
		built[platforms.FormatAll(platforms.Normalize(r.Platform))] = true
	}
	for _, m := range []map[string]map[string]string{a.manifest, a.descriptor} {
		for id := range m {
			if !built[id] {
				return invalid("invalid annotation: no platform %s found in source", id)
			}
		}
	}
	return nil
}

// wantIndex says whether there must be an index to carry an annotation, also
// around a single manifest.
func (a *annotations) wantIndex() bool { return len(a.index)+len(a.indexDescriptor) > 0 }

// forPlatform picks those of one platform, over those of all; nil if there are none.
func forPlatform(m map[string]map[string]string, p oci.Platform) map[string]string {
	out := map[string]string{}
	maps.Copy(out, m[""])
	maps.Copy(out, m[platforms.FormatAll(platforms.Normalize(p))])
	if len(out) == 0 {
		return nil
	}
	return out
}
