package doctor

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/docker/go-units"

	"den/internal/sandbox"
)

// What the store needs. A Debian image with a compiler is about 1 GiB and has
// 20,000 files.
const (
	littleBytes  = 2 << 30
	tooFewBytes  = 16 << 20
	littleInodes = 100_000
	tooFewInodes = 1000
	enoughTmpfs  = "8g"
	// memoryWithTmpfs is for such a tmpfs, full, and a build beside it.
	memoryWithTmpfs = "10g"
	memoryForTmpfs  = 10 << 30
)

func storeChecks(in Input) []Check {
	l := []Check{placeCheck(in)}
	if in.Store.Err != nil {
		return l
	}
	l = append(l, spaceCheck(in))
	if d := in.Store.Disk; d.Inodes > 0 {
		c := Check{ID: "store.inodes", Area: areaStore, Status: OK, Text: fmt.Sprintf("%d files can be made", d.FreeInodes)}
		switch {
		case d.FreeInodes < tooFewInodes:
			c.Status = Bad
		case d.FreeInodes < littleInodes:
			c.Status = Short
		}
		if c.Status != OK {
			c.Fix = roomier(in)
		}
		l = append(l, c)
	}
	if in.Store.Disk.NoExec {
		l = append(l, execCheck(in))
	}
	return l
}

func placeCheck(in Input) Check {
	s := in.Store
	c := Check{ID: "store.place", Area: areaStore, Status: OK, Text: fmt.Sprintf("%s, on %s", s.Root, s.Disk.FSType)}
	switch {
	case s.Err != nil:
		c.Status, c.Text = Bad, s.Err.Error()
		c.Fix = ownDirectory(in).fix()
		if t := in.Facts.Security.SELinux; t != "" && errors.Is(s.Err, fs.ErrPermission) {
			c.Text += fmt.Sprintf("; if that is SELinux's doing, the volume has to have a label that %s may write: -v DIR:%s:Z", t, s.Root)
		}
	case s.Slow != "":
		c.Status = Note
		c.Text += "; " + s.Slow
	case s.Disk.FSType == "overlay":
		c.Status = Short
		c.Text += ", this container's own file system: the store is private to it and goes with it"
		c.Fix = ownDirectory(in).fix()
	case s.Disk.FSType == "tmpfs":
		c.Status = Note
		c.Text += ": in memory, it goes with the container"
	case !s.Shared:
		c.Status = Note
		c.Text += ", which den does not know: only this container should use it"
	default:
		c.Text += ", which containers of this machine can share"
	}
	return c
}

func spaceCheck(in Input) Check {
	d := in.Store.Disk
	c := Check{ID: "store.space", Area: areaStore, Status: OK, Text: fmt.Sprintf("%s free of %s", size(d.FreeBytes), size(d.SizeBytes))}
	if d.FSType == "tmpfs" {
		c.Text += ", the cap of the tmpfs, and it counts as memory"
		if m := in.Limits.MemoryBytes; m > 0 && m < d.SizeBytes {
			c.Text += fmt.Sprintf(", of which the container around den may have %s", size(m))
			d.FreeBytes = min(d.FreeBytes, m-in.Limits.MemoryUsedBytes)
		}
	}
	switch {
	case d.FreeBytes < tooFewBytes:
		c.Status = Bad
	case d.FreeBytes < littleBytes:
		c.Status = Short
	}
	if c.Status != OK {
		c.Fix = roomier(in)
	}
	return c
}

// roomier is a larger place for the store, or a smaller store.
func roomier(in Input) *Fix {
	var s setting
	if in.Store.Disk.FSType == "tmpfs" {
		s = setting{tmpfs: in.Store.Root, tmpfsSize: enoughTmpfs}
		if m := in.Limits.MemoryBytes; m > 0 && m < memoryForTmpfs {
			s.memory = memoryWithTmpfs
		}
	}
	if in.Store.Exists {
		s.den = []string{"den prune --all --force"}
	}
	if s.tmpfs == "" && s.den == nil {
		s = ownDirectory(in)
	}
	return s.fix()
}

// execID is a check of the store that leaves den all but what it would run.
const execID = "store.exec"

func execCheck(in Input) Check {
	c := Check{ID: execID, Area: areaStore, Status: Short, Text: "it is mounted noexec, so that nothing in cache mounts and volumes can be executed"}
	if in.Choice.Rung == sandbox.RungSentry && in.ChoiceErr == nil {
		// The sentry maps what it executes from the layer's file.
		c.Status, c.Text = Bad, "it is mounted noexec, from where the sentry can execute nothing"
	}
	if in.Store.Disk.FSType == "tmpfs" {
		c.Fix = setting{tmpfs: in.Store.Root}.fix()
	} else {
		c.Fix = setting{machine: []string{"mount -o remount,exec " + shellWord(in.Store.Disk.Dir)}}.fix()
	}
	return c
}

func size(n int64) string { return units.BytesSize(float64(n)) }
