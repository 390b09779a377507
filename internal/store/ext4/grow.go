package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// ErrUnclean is Grow's for a file system that was not unmounted: mounting it, and
// unmounting it, brings its journal home.
var ErrUnclean = errors.New("the file system was not unmounted")

// Bytes is the size of the file system in f; it is an error of class
// errdefs.ErrFailedPrecondition if Format did not make it.
func Bytes(f io.ReaderAt) (int64, error) {
	s, err := readSuper(f)
	if err != nil {
		return 0, fmt.Errorf("file system: %w", err)
	}
	return int64(s.groups()) * GroupBytes, nil
}

// Grow makes the file system in f, which nobody has mounted, one of sizeBytes, which
// is from Size. f's length grows first. Whenever it ends, there is a file system of either
// the old or the new size. A size that it has already, or more, changes nothing.
func Grow(f *os.File, sizeBytes int64) error {
	s, err := readSuper(f)
	if err == nil {
		err = s.grow(f, uint32(sizeBytes/GroupBytes))
	}
	if err != nil {
		return fmt.Errorf("grow file system: %w", err)
	}
	return nil
}

func (s superblock) grow(f *os.File, to uint32) error {
	from := s.groups()
	if to <= from {
		return nil
	}
	if le.Uint16(s[0x3A:]) != 1 || le.Uint32(s[0x60:])&needsRecovery != 0 {
		return ErrUnclean
	}
	size := int64(to) * GroupBytes
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Size() > size {
		return fmt.Errorf("the file has %d bytes, more than the %d that it is to grow to", info.Size(), size)
	}
	// What a growth that was interrupted left behind its end must go: unused
	// groups are taken for zeros.
	if err := f.Truncate(int64(from) * GroupBytes); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := copyDescriptors(f, from, to); err != nil {
		return err
	}
	if err := writeDescriptors(f, from, to, s.seed(), nil); err != nil {
		return err
	}
	// The superblock says how many descriptors count, so they are on disk before.
	if err := f.Sync(); err != nil {
		return err
	}
	s.add(0x0, (to-from)*groupInodes)
	s.add(0x4, (to-from)*groupBlocks)
	s.add(0xC, freeBlocks(from, to))
	s.add(0x10, (to-from)*groupInodes)
	if err := writeSuper(f, s); err != nil {
		return err
	}
	return f.Sync()
}

// copyDescriptors gives the new groups that keep copies of an old meta group's
// descriptors those of its old groups.
func copyDescriptors(f *os.File, from, to uint32) error {
	meta := from / groupsPerMeta * groupsPerMeta
	if from == meta {
		return nil
	}
	old := make([]byte, (from-meta)*descBytes)
	if _, err := f.ReadAt(old, int64(groupAt(meta).descriptors)*blockBytes); err != nil {
		return err
	}
	for _, g := range []uint32{meta + 1, meta + groupsPerMeta - 1} {
		if g < from || g >= to {
			continue
		}
		if _, err := f.WriteAt(old, int64(groupAt(g).descriptors)*blockBytes); err != nil {
			return err
		}
	}
	return nil
}

// readSuper reads the superblock of a file system of Format's shape. The kernel may have
// added features that leave it as it is.
func readSuper(f io.ReaderAt) (superblock, error) {
	s := make(superblock, superBytes)
	if _, err := f.ReadAt(s, superOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if le.Uint16(s[0x38:]) != 0xEF53 || !s.valid() {
		return nil, fmt.Errorf("no ext4 superblock, or a damaged one: %w", errdefs.ErrFailedPrecondition)
	}
	groups := s.groups()
	shape := bytes.Join([][]byte{le32(groups * groupInodes), le32(groups * groupBlocks), le32(2), le32(groupBlocks), le32(groupInodes), le32(0), le32(incompatFeatures)}, nil)
	have := bytes.Join([][]byte{s[0x0:0x4], s[0x4:0x8], s[0x18:0x1C], s[0x20:0x24], s[0x28:0x2C], s[0x104:0x108],
		le32(le.Uint32(s[0x60:]) &^ needsRecovery)}, nil)
	if groups == 0 || !bytes.Equal(have, shape) || le.Uint32(s[0x64:])&roCompatFeatures != roCompatFeatures || le.Uint16(s[0x58:]) != inodeBytes || s[0x175] != 1 {
		return nil, fmt.Errorf("it is not one that den made: %w", errdefs.ErrFailedPrecondition)
	}
	return s, nil
}
