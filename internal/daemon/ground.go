package daemon

import (
	"fmt"

	"github.com/docker/go-units"

	"den/internal/probe"
	"den/internal/store/backing"
	"den/internal/sys"
)

// A Ground is what bounds the store from below.
type Ground struct {
	// Image is the store's own, nil for one in a plain directory.
	Image *backing.Usage `json:",omitempty"`
	// TmpfsBytes is the size of the tmpfs on which the store lies, 0 for another file
	// system. All of it is memory.
	TmpfsBytes int64 `json:",omitempty"`
	// TmpfsUsedBytes is how much of it is used, by whatever.
	TmpfsUsedBytes int64 `json:",omitempty"`
	// MemoryLimitBytes is what the outer container, with the tmpfs, may have, 0 for no
	// limit. It is looked up for a tmpfs only.
	MemoryLimitBytes int64 `json:",omitempty"`
}

// Ground looks at what the store lies on.
func (d *Den) Ground() (Ground, error) {
	var g Ground
	if d.backing != nil {
		u, err := d.backing.Usage()
		if err != nil {
			return g, err
		}
		g.Image = &u
		return g, nil
	}
	fs, err := sys.FSName(d.Store.Root())
	if err != nil || fs != "tmpfs" {
		return g, err
	}
	disk, err := sys.DiskOf(d.Store.Root())
	if err != nil {
		return g, err
	}
	g.TmpfsBytes, g.TmpfsUsedBytes, g.MemoryLimitBytes = disk.UsedBytes+disk.FreeBytes, disk.UsedBytes, probe.MemoryLimit()
	return g, nil
}

// CapBytes is what a store in memory cannot grow beyond; 0 for other stores.
func (g Ground) CapBytes() int64 {
	if g.MemoryLimitBytes > 0 {
		return min(g.TmpfsBytes, g.MemoryLimitBytes)
	}
	return g.TmpfsBytes
}

// String is a line for people, empty for a plain directory on a disk.
func (g Ground) String() string {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	switch {
	case g.Image != nil:
		return fmt.Sprintf("image of %s on %s, takes %s: %s", size(g.Image.SizeBytes), g.Image.Device, size(g.Image.HostBytes), g.Image.Path)
	case g.TmpfsBytes > 0 && g.MemoryLimitBytes > 0:
		return fmt.Sprintf("memory: a tmpfs of %s in a container that may have %s; builds and containers need of that, too", size(g.TmpfsBytes), size(g.MemoryLimitBytes))
	case g.TmpfsBytes > 0:
		return fmt.Sprintf("memory: a tmpfs of %s", size(g.TmpfsBytes))
	}
	return ""
}

// sayCap tells who makes a store in memory how large it can become.
func (d *Den) sayCap() {
	g, err := d.Ground()
	if err == nil && g.TmpfsBytes > 0 {
		d.options.Notice(fmt.Sprintf("store %s is in %s; cap it with --max-size (DEN_STORE_MAX_SIZE)", d.Store.Root(), g))
	}
}
