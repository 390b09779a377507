package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"den/internal/oci"
)

// maxListed bounds the platforms that an error lists.
const maxListed = 24

// A PlatformError says that an image is not offered for a platform. Its class
// is errdefs.ErrNotFound.
type PlatformError struct {
	Want    oci.Platform
	Offered []oci.Platform
}

func (e *PlatformError) Error() string {
	var names []string
	for _, p := range e.Offered {
		if name := platforms.Format(p); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(names) > maxListed {
		names = append(names[:maxListed], "and more")
	}
	offered := strings.Join(names, ", ")
	if offered == "" {
		offered = "none that is known"
	}
	return fmt.Sprintf("no image for platform %s, there is: %s", platforms.Format(e.Want), offered)
}

// Unwrap gives the error its class.
func (e *PlatformError) Unwrap() error { return errdefs.ErrNotFound }

func isPlatformError(err error) bool {
	var pe *PlatformError
	return errors.As(err, &pe)
}

// normalized is p in the spelling that platforms are compared in; the zero
// platform becomes this machine's.
func normalized(p oci.Platform) oci.Platform {
	if p.OS == "" && p.Architecture == "" {
		return platforms.DefaultSpec()
	}
	return platforms.Normalize(p)
}

// choose returns the image for want out of an entry. Without a wish the
// default platform's is taken, else whatever there is. A wish is met by the
// same architecture only: that arm/v6 also runs on arm/v7 is a reason to
// take it from an index that has nothing better, not to skip asking.
func (e *entry) choose(want *oci.Platform, def oci.Platform) (*Image, error) {
	if len(e.Images) == 0 {
		return nil, fmt.Errorf("image %s: holds no platform: %w", familiar(e.name), errdefs.ErrNotFound)
	}
	p := def
	if want != nil {
		p = normalized(*want)
	}
	match := platforms.OnlyStrict(p)
	for _, img := range e.Images {
		if match.Match(img.Platform) {
			return img, nil
		}
	}
	// A name that stands for one manifest has nothing else to offer, whatever
	// was wished for; docker build takes it too.
	if want == nil || e.pulled && !e.isIndex() {
		return bestOf(e.Images, p), nil
	}
	err := &PlatformError{Want: p}
	for _, img := range e.Images {
		err.Offered = append(err.Offered, img.Platform)
	}
	return nil, fmt.Errorf("image %s: %w", familiar(e.name), err)
}

func (e *entry) isIndex() bool { return e.Target != nil && oci.IsIndex(e.Target.MediaType) }

func bestOf(images []*Image, p oci.Platform) *Image {
	match := platforms.Only(p)
	best := images[0]
	for _, img := range images[1:] {
		if match.Match(img.Platform) && (!match.Match(best.Platform) || match.Less(img.Platform, best.Platform)) {
			best = img
		}
	}
	return best
}

// candidates returns the manifests of an index that are images for p, best
// first, as containerd and so docker order them. Those that do not say for
// which platform they are come last.
func candidates(x *oci.Index, p oci.Platform) ([]oci.Descriptor, error) {
	match := platforms.Only(p)
	var found, unsaid []oci.Descriptor
	missing := &PlatformError{Want: p}
	for _, d := range images(x) {
		switch {
		case d.Platform == nil:
			unsaid = append(unsaid, d)
		case match.Match(platforms.Normalize(*d.Platform)):
			found = append(found, d)
		default:
			missing.Offered = append(missing.Offered, platforms.Normalize(*d.Platform))
		}
	}
	slices.SortStableFunc(found, func(a, b oci.Descriptor) int {
		pa, pb := platforms.Normalize(*a.Platform), platforms.Normalize(*b.Platform)
		switch {
		case match.Less(pa, pb):
			return -1
		case match.Less(pb, pa):
			return 1
		}
		return 0
	})
	if found = append(found, unsaid...); len(found) > 0 {
		return found, nil
	}
	if len(missing.Offered) == 0 && slices.ContainsFunc(x.Manifests, func(d oci.Descriptor) bool { return oci.IsIndex(d.MediaType) }) {
		return nil, fmt.Errorf("index lists other indexes only, which are not followed; name one of them by its digest: %w", errdefs.ErrInvalidArgument)
	}
	return nil, missing
}

// images lists an index's manifests without those about other manifests.
func images(x *oci.Index) []oci.Descriptor {
	var out []oci.Descriptor
	for _, d := range x.Manifests {
		if d.Annotations[attestationType] != "" || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		if d.MediaType != "" && !oci.IsManifest(d.MediaType) {
			continue
		}
		out = append(out, d)
	}
	return out
}
