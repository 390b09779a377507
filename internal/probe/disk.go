package probe

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// A Disk is what the store's directory, or the nearest one above it that is there,
// offers.
type Disk struct {
	// Dir is the directory that was looked at.
	Dir string
	// FSType names its file system.
	FSType string
	// FreeBytes and FreeInodes are what this process may still use, SizeBytes and
	// Inodes what there is; Inodes is 0 where the file system does not count them.
	FreeBytes, SizeBytes int64
	FreeInodes, Inodes   int64
	// NoExec says that nothing in it can be executed.
	NoExec bool
	// Err says why no file could be made in it; nil if one could.
	Err error
	// Ahead is how far the file's time was ahead of the clock.
	Ahead time.Duration
}

// LookAtDisk makes a file in dir, or the nearest directory above it, and removes it again.
func LookAtDisk(dir string) Disk {
	d := Disk{Dir: nearest(dir)}
	d.FSType, _ = sys.FSName(d.Dir)
	var st unix.Statfs_t
	if unix.Statfs(d.Dir, &st) == nil {
		unit := int64(st.Frsize)
		if unit == 0 {
			unit = int64(st.Bsize)
		}
		d.FreeBytes, d.SizeBytes = int64(st.Bavail)*unit, int64(st.Blocks)*unit
		d.FreeInodes, d.Inodes = int64(st.Ffree), int64(st.Files)
		d.NoExec = st.Flags&unix.ST_NOEXEC != 0
	}
	d.Ahead, d.Err = tryFile(d.Dir)
	return d
}

// tryFile makes a file with some content, for a full disk may still have names.
func tryFile(dir string) (ahead time.Duration, err error) {
	tmp, err := os.MkdirTemp(dir, ".den-probe-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "f")
	before := time.Now()
	if err := os.WriteFile(name, make([]byte, os.Getpagesize()), 0o600); err != nil {
		return 0, err
	}
	after := time.Now()
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	switch at := info.ModTime(); {
	case at.Before(before):
		return at.Sub(before), nil
	case at.After(after):
		return at.Sub(after), nil
	}
	return 0, nil
}
