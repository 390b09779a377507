package snapshot

import (
	"context"
	"fmt"
)

// Facts are what the choice of a driver depends on.
type Facts struct {
	// OverlayOK says that an overlay with its upper directory in the store
	// could be mounted; OverlayErr says why not.
	OverlayOK  bool
	OverlayErr string
	// OnOverlay says that the store lies on an overlay file system.
	OnOverlay bool
	// Reflink says that the store's file system shares blocks between files.
	Reflink bool
	// Scratch makes a draft for a view of the copy driver; nil uses the
	// directory for temporary files.
	Scratch func(context.Context) (Draft, error)
}

// Drivers lists the drivers, best first.
func Drivers() []Driver { return []Driver{overlay{}, copying{}} }

// Choose picks the best driver that the facts allow, and says why in words for
// the person who asks doctor.
func Choose(f Facts) (Driver, string) {
	if f.OverlayOK {
		return overlay{}, "overlay: the kernel merges layers without copying"
	}
	why := "copy: every step copies its whole root file system"
	if f.Reflink {
		why = "copy: every step clones its root file system, file by file, sharing blocks"
	}
	switch {
	case f.OnOverlay:
		why += "; the store lies on the container's own overlay file system, on which no other overlay can be: " +
			"give the store a volume (-v den:/var/lib/den) or a tmpfs, and steps start at once"
	case f.OverlayErr != "":
		why += fmt.Sprintf("; an overlay could not be mounted: %s", f.OverlayErr)
	default:
		why += "; no overlay can be mounted here"
	}
	return copying{scratch: f.Scratch}, why
}
