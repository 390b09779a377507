package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

// The shape of every file system that this package makes; the rest follows from
// the number of groups.
const (
	blockBytes     = 4096
	groupBlocks    = 8 * blockBytes // as many as one block has bits
	inodeBytes     = 256
	groupInodes    = 8192 // one for 16 KiB, mke2fs's default
	tableBlocks    = groupInodes * inodeBytes / blockBytes
	descBytes      = 32
	groupsPerMeta  = blockBytes / descBytes
	superOffset    = 1024 // in block 0; the copies are at the beginning of their block
	superBytes     = 1024
	rootInode      = 2
	journalInode   = 8
	lostFoundInode = 11
)

// Feature flags (fs/ext4/ext4.h).
const (
	compatFeatures   = 0x4 | 0x8 | 0x20                      // has_journal, ext_attr, dir_index
	incompatFeatures = 0x2 | 0x10 | 0x40                     // filetype, meta_bg, extents
	roCompatFeatures = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400 // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
	needsRecovery    = 0x4                                   // incompat, while it is mounted and after a crash
)

// Group flags.
const (
	groupInodesUnused = 1 // INODE_UNINIT: the kernel takes the inode bitmap for empty
	groupBlocksUnused = 2 // BLOCK_UNINIT: and makes the block bitmap by itself
	groupTableZeroed  = 4 // INODE_ZEROED: nobody needs to write zeros to it
)

// le is the byte order on disk, but for the journal's.
var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the kernel's crc32c, which inverts neither before nor after.
func checksum(seed uint32, parts ...[]byte) uint32 {
	for _, p := range parts {
		seed = ^crc32.Update(^seed, castagnoli, p)
	}
	return seed
}

func le32(v uint32) []byte { return le.AppendUint32(nil, v) }

// hasSuper reports whether group g has a copy of the superblock (sparse_super).
func hasSuper(g uint32) bool {
	if g < 2 {
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		n := g
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// hasDescriptors reports whether group g has the block of its meta group's
// descriptors or a copy of it (meta_bg).
func hasDescriptors(g uint32) bool {
	switch g % groupsPerMeta {
	case 0, 1, groupsPerMeta - 1:
		return true
	}
	return false
}

// A group is where the parts of a block group lie.
type group struct {
	number                        uint32
	first                         uint32 // block
	blockBitmap, inodeBitmap      uint32
	table                         uint32
	used                          uint32 // blocks from the first on that are not for files
	descriptors                   uint32 // block of descriptors, where it has one
	superblockHere, describesHere bool
}

func groupAt(number uint32) group {
	g := group{number: number, first: number * groupBlocks, superblockHere: hasSuper(number), describesHere: hasDescriptors(number)}
	next := g.first
	if g.superblockHere {
		next++
	}
	if g.describesHere {
		g.descriptors = next
		next++
	}
	g.blockBitmap, g.inodeBitmap, g.table = next, next+1, next+2
	g.used = next + 2 + tableBlocks - g.first
	return g
}

// unused is the descriptor of a group with no file in it.
func (g group) unused(seed uint32) []byte {
	d := make([]byte, descBytes)
	le.PutUint32(d[0x0:], g.blockBitmap)
	le.PutUint32(d[0x4:], g.inodeBitmap)
	le.PutUint32(d[0x8:], g.table)
	le.PutUint16(d[0xC:], uint16(groupBlocks-g.used))
	le.PutUint16(d[0xE:], groupInodes)
	le.PutUint16(d[0x12:], groupInodesUnused|groupBlocksUnused|groupTableZeroed)
	le.PutUint16(d[0x1C:], groupInodes)
	g.sign(d, seed)
	return d
}

// sign puts the checksum into descriptor d.
func (g group) sign(d []byte, seed uint32) {
	le.PutUint16(d[0x1E:], uint16(checksum(seed, le32(g.number), d[:0x1E], []byte{0, 0})))
}

// A superblock is the 1024 bytes on disk.
type superblock []byte

func (s superblock) groups() uint32       { return le.Uint32(s[0x4:]) / groupBlocks }
func (s superblock) seed() uint32         { return checksum(^uint32(0), s[0x68:0x78]) }
func (s superblock) add(at int, n uint32) { le.PutUint32(s[at:], le.Uint32(s[at:])+n) }
func (s superblock) valid() bool          { return le.Uint32(s[0x3FC:]) == checksum(^uint32(0), s[:0x3FC]) }
func (s superblock) sign()                { le.PutUint32(s[0x3FC:], checksum(^uint32(0), s[:0x3FC])) }
func (s superblock) copyFor(g uint32) []byte {
	c := append(superblock(nil), s...)
	le.PutUint16(c[0x5A:], uint16(g))
	c.sign()
	return c
}
