// Package backing puts a store into a file system of its own: a sparse ext4 image on
// a loop device. It is for containers whose own overlay is all the disk there is, and on
// which the kernel makes no other overlay.
//
// A directory with a backing holds the marker den-backing.json, the image
// den-backing.img and store, the empty directory on which each process mounts the image:
// the store's directory is there. Three rules keep the image whole, whoever dies when:
//
//   - It is attached to at most one loop device. Who needs it looks for that device under
//     a lock on the marker and mounts the same one; the kernel then gives all mounts one
//     superblock, in whatever mount namespaces they are. Two devices would corrupt it.
//   - A mount belongs to the mount namespace of one den and what den starts, so it ends
//     with them, and the device detaches itself after the last.
//   - The image lies where no other kernel can see it. Network and shared file systems are
//     refused.
package backing

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/store/ext4"
	"den/internal/sys"
)

// The members of a directory with a backing.
const (
	markerFile = "den-backing.json"
	imageFile  = "den-backing.img"
	mountDir   = "store"
)

// markerVersion is the only one there is. A den that finds another leaves the
// directory alone.
const markerVersion = 1

// maxMarker bounds the marker, in bytes.
const maxMarker = 4096

// marker is the content of markerFile.
type marker struct {
	Version int    `json:"v"`
	Kind    string `json:"backing"`
}

// A Backing is a directory with an image.
type Backing struct{ dir string }

// Find returns the backing of dir, nil if it has none. Errors are of class
// errdefs.ErrFailedPrecondition where a later den has made it.
func Find(dir string) (*Backing, error) {
	f, err := os.Open(filepath.Join(dir, markerFile))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("backing: %w", err)
	}
	defer f.Close()
	m, err := readMarker(f)
	if err != nil {
		return nil, fmt.Errorf("backing %s: %w", dir, err)
	}
	if m.Version != markerVersion || m.Kind != "loop" {
		return nil, fmt.Errorf("backing %s: it is %q of version %d, made by a later den; use that one, or another DEN_STORE: %w",
			dir, m.Kind, m.Version, errdefs.ErrFailedPrecondition)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("backing %s: %w", dir, err)
	}
	return &Backing{abs}, nil
}

func readMarker(r io.Reader) (m marker, err error) {
	data, err := io.ReadAll(io.LimitReader(r, maxMarker+1))
	if err == nil && len(data) > maxMarker {
		err = fmt.Errorf("larger than %d bytes", maxMarker)
	}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return m, fmt.Errorf("%s: %w", markerFile, err)
	}
	return m, nil
}

// Dir is the directory that the user names.
func (b *Backing) Dir() string { return b.dir }

// Store is the store's directory, when it is mounted.
func (b *Backing) Store() string { return filepath.Join(b.dir, mountDir) }

func (b *Backing) marker() string { return filepath.Join(b.dir, markerFile) }
func (b *Backing) image() string  { return filepath.Join(b.dir, imageFile) }

// Mounted reports whether the process sees the image on the store's directory.
func (b *Backing) Mounted() bool {
	var below, there unix.Stat_t
	return unix.Stat(b.dir, &below) == nil && unix.Stat(b.Store(), &there) == nil && below.Dev != there.Dev
}

// lock waits for the lock under which the loop device is looked for. Nobody has it
// for longer than a mount takes.
func (b *Backing) lock() (*os.File, error) {
	f, err := os.Open(b.marker())
	if err != nil {
		return nil, err
	}
	if err := sys.Flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Usage is what an image takes and may take.
type Usage struct {
	// Path is the image's; Device is the loop device that it is on.
	Path, Device string
	// SizeBytes is what it may grow to, HostBytes what it takes of the file system
	// that it lies on.
	SizeBytes, HostBytes int64
}

// Usage looks at the image.
func (b *Backing) Usage() (Usage, error) {
	var image, there unix.Stat_t
	if err := unix.Stat(b.image(), &image); err != nil {
		return Usage{}, fmt.Errorf("backing: %w", &os.PathError{Op: "stat", Path: b.image(), Err: err})
	}
	u := Usage{Path: b.image(), SizeBytes: image.Size, HostBytes: image.Blocks * 512}
	if b.Mounted() && unix.Stat(b.Store(), &there) == nil {
		u.Device = deviceName(there.Dev)
	}
	return u, nil
}

// deviceName is the kernel's name of a block device, its numbers where there is no sysfs.
func deviceName(dev uint64) string {
	numbers := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	link, err := os.Readlink("/sys/dev/block/" + numbers)
	if err != nil {
		return numbers
	}
	return "/dev/" + filepath.Base(link)
}

// TrimLater starts a process, for which nobody waits, that gives the image's unused
// blocks back to the file system that it lies on. It waits for another that is at it, which
// may have passed by what is unused since.
func (b *Backing) TrimLater() error { return b.trim(b.Store()) }

func (b *Backing) trim(dir string) error {
	store, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("trim: %w", err)
	}
	defer store.Close()
	image, err := os.Open(b.image())
	if err != nil {
		return fmt.Errorf("trim: %w", err)
	}
	defer image.Close()
	d := sys.NewDetached(store, image)
	d.Flock(image, unix.LOCK_EX)
	d.Syncfs(store) // blocks are unused once the journal says so
	d.Trim(store)
	if err := d.Start(); err != nil {
		return fmt.Errorf("trim: %w", err)
	}
	return nil
}

// checkPlace refuses file systems on which another kernel may use the image.
func checkPlace(dir string) error {
	fs, err := sys.FSName(dir)
	if err != nil {
		return err
	}
	switch fs {
	case "overlay", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "bcachefs":
		return nil
	}
	return fmt.Errorf("its file system is %s, which other machines may see, and two that mount one image destroy it; "+
		"use a directory on a local disk, or on the container's own file system: %w", fs, errdefs.ErrFailedPrecondition)
}

// size is ext4.Size with its error for users.
func size(sizeBytes int64) (int64, error) {
	n, err := ext4.Size(sizeBytes)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}
