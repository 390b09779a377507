package snapshot

import (
	"context"
	"fmt"
)

// Facts are what the choice of a driver depends on.
type Facts struct {
	// Images says that the store is in image form: then no other driver will do.
	Images bool
	// OverlayOK says that an overlay with its upper directory in the store
	// could be mounted; OverlayErr says why not.
	OverlayOK  bool
	OverlayErr string
	// OnOverlay says that the store lies on an overlay file system, BareTmpfs that it does on a
	// tmpfs without the attributes that an overlay needs.
	OnOverlay, BareTmpfs bool
	// Fuse is the program fuse-overlayfs, "" where there is none or it could mount
	// nothing; FuseErr says why, in a sentence.
	Fuse, FuseErr string
	// Reflink says that the store's file system shares blocks between files.
	Reflink bool
	// Sentry says that a sentry can serve where nothing merges layers. Then full
	// copies are made only for who asks for them.
	Sentry bool
	// Force is the driver that the user asked for: one of den's, "vfs", which is what
	// others call copies, or a word of others' that is advice and changes nothing.
	Force string
	// Scratch makes a draft for a view of the copy driver; nil uses the
	// directory for temporary files.
	Scratch func(context.Context) (Draft, error)
}

// Names of drivers, as users type them.
const (
	Overlay     = "overlay"
	FuseOverlay = "fuse-overlayfs"
	Copy        = "copy"
)

// Drivers lists the drivers, best first; that of fuse-overlayfs runs what PATH has.
func Drivers() []Driver {
	return []Driver{overlay{}, fuseOverlay{program: FuseOverlay}, copying{}}
}

// Choose picks the best driver that the facts allow, and says why in words for
// the person who asks doctor. Without a driver the words say what to do: one was
// forced that does not work, or the sentry has to serve.
func Choose(f Facts) (Driver, string) {
	if f.Images {
		return images{}, "erofs: layers are images, which the sandbox's own kernel merges without copying"
	}
	if Advice(f.Force) {
		return best(f)
	}
	switch f.Force {
	case Overlay:
		if !f.OverlayOK {
			return nil, "overlay: it was asked for, and " + noOverlay(f)
		}
		return overlay{}, "overlay: asked for"
	case FuseOverlay:
		if f.Fuse == "" {
			return nil, "fuse-overlayfs: it was asked for, and " + f.FuseErr
		}
		return fuseOverlay{program: f.Fuse}, "fuse-overlayfs: asked for"
	case Copy, "vfs":
		return copying{scratch: f.Scratch}, "copy: asked for; " + copies(f)
	}
	return nil, fmt.Sprintf("%.40q: unknown, want auto, %s, %s or %s", f.Force, Overlay, FuseOverlay, Copy)
}

func best(f Facts) (Driver, string) {
	switch {
	case f.OverlayOK:
		return overlay{}, "overlay: the kernel merges layers without copying"
	case f.Fuse != "":
		return fuseOverlay{program: f.Fuse}, "fuse-overlayfs: a program merges layers without copying; reading is slower than through the kernel: " + noOverlay(f)
	case f.Sentry && !f.Reflink:
		return nil, "none: nothing merges layers here, and full copies are made only for who asks for them (DEN_STORAGE_DRIVER=copy): " + noOverlay(f)
	}
	return copying{scratch: f.Scratch}, "copy: " + copies(f) + "; " + noOverlay(f)
}

func copies(f Facts) string {
	if f.Reflink {
		return "every step clones its root file system, file by file, sharing blocks"
	}
	return "every step copies its whole root file system"
}

// Unmerged says why nothing merges layers on disk, in words for the person who asks why
// the sentry does, and ends with what helps; "" if something does, or if the user forced a driver.
// Clones that share blocks are as good as merging.
func Unmerged(f Facts) string {
	if !Advice(f.Force) || f.OverlayOK || f.Fuse != "" || f.Reflink {
		return ""
	}
	return noOverlay(f)
}

// Advice reports whether a forced driver leaves the choice to den: none is, or what
// other tools call theirs.
func Advice(force string) bool {
	switch force {
	case "", "auto", "overlay2", "overlayfs", "native", "btrfs", "zfs", "xfs", "aufs", "devicemapper":
		return true
	}
	return false
}

// noOverlay says why the kernel's is not used, and ends with what helps.
func noOverlay(f Facts) string {
	switch {
	case f.OverlayOK:
		return "the kernel's overlay works here, too"
	case f.OnOverlay:
		return "the store lies on the container's own overlay file system, on which no other overlay can be: " +
			"give the store a volume (-v den:/var/lib/den), a tmpfs, or, where loop devices are allowed, an image (den store create --backing loop), and the kernel merges layers"
	case f.BareTmpfs:
		return "the store lies on a tmpfs, which before Linux 6.6 keeps no user attributes, so that no overlay can be there: give the store a volume instead (-v den:/var/lib/den)"
	case f.OverlayErr != "":
		return "an overlay could not be mounted: " + f.OverlayErr
	}
	return "no overlay can be mounted here"
}
