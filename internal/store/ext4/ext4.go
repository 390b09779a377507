// Package ext4 makes empty ext4 file systems in files, and larger ones of them, so
// that den needs no mkfs in its image. The file stays sparse: of an unused group of
// 128 MiB nothing is written but its descriptor.
//
// Two choices make that simple. Sizes are whole groups; and descriptors lie in the
// group that they begin with (meta_bg) instead of at the front, so that growing moves
// nothing. Layout and checksums are those of the kernel's Documentation/filesystems/ext4,
// and the tests have e2fsck look at the results.
package ext4

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// GroupBytes is the unit of sizes.
const GroupBytes = groupBlocks * blockBytes

// MaxBytes is the largest size: block numbers have 32 bits here.
const MaxBytes = (1<<32/groupBlocks - 1) * GroupBytes

// Size is the next size from sizeBytes on that a file system can have. The error says
// what the bounds are.
func Size(sizeBytes int64) (int64, error) {
	if sizeBytes <= 0 || sizeBytes > MaxBytes {
		return 0, fmt.Errorf("size %d: want at least %d MiB and at most %d GiB", sizeBytes, GroupBytes>>20, int64(MaxBytes)>>30)
	}
	return (sizeBytes + GroupBytes - 1) / GroupBytes * GroupBytes, nil
}

// Format makes an empty file system of sizeBytes, which is from Size, in the empty
// file f, and sets f's length.
func Format(f *os.File, sizeBytes int64) error {
	m := maker{f: f, groups: uint32(sizeBytes / GroupBytes), now: uint32(time.Now().Unix()), journal: journalBlocks(sizeBytes)}
	if err := f.Truncate(sizeBytes); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	uuid := make([]byte, 16)
	if _, err := rand.Read(uuid); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80
	m.uuid, m.seed = uuid, checksum(^uint32(0), uuid)
	err := m.files()
	if err == nil {
		err = writeDescriptors(f, 0, m.groups, m.seed, m.firstGroup())
	}
	if err == nil {
		err = writeSuper(f, m.superblock())
	}
	if err != nil {
		return fmt.Errorf("format: %w", err)
	}
	return nil
}

// journalBlocks follows mke2fs, within what a group holds.
func journalBlocks(sizeBytes int64) uint32 {
	if sizeBytes >= 2<<30 {
		return 16384
	}
	return 4096
}

// A maker writes what a new file system has besides descriptors. All of it is in
// the first group: root directory, lost+found, journal.
type maker struct {
	f                                 *os.File
	uuid                              []byte
	seed                              uint32
	groups, now, journal              uint32
	blockBitmap, inodeBitmap, jblocks []byte
}

func (m *maker) at(block uint32, data []byte) error {
	_, err := m.f.WriteAt(data, int64(block)*blockBytes)
	return err
}

func (m *maker) files() error {
	g := groupAt(0)
	root, lost, journal := g.used, g.used+1, g.used+2
	used := g.used + 2 + m.journal
	m.blockBitmap, m.inodeBitmap = make([]byte, blockBytes), make([]byte, blockBytes)
	setBits(m.blockBitmap, used)
	setBits(m.inodeBitmap, lostFoundInode)
	for i := groupInodes / 8; i < blockBytes; i++ {
		m.inodeBitmap[i] = 0xff // beyond the group's inodes
	}
	table := make([]byte, 16*inodeBytes)
	put := func(number uint32, inode []byte) { copy(table[(number-1)*inodeBytes:], inode) }
	put(rootInode, m.inode(rootInode, 0o40755, 3, root, 1))
	put(lostFoundInode, m.inode(lostFoundInode, 0o40700, 2, lost, 1))
	journalFile := m.inode(journalInode, 0o100600, 1, journal, m.journal)
	put(journalInode, journalFile)
	m.jblocks = journalFile[0x28:0x64]
	return errors.Join(
		m.at(g.blockBitmap, m.blockBitmap),
		m.at(g.inodeBitmap, m.inodeBitmap),
		m.at(g.table, table),
		m.at(root, m.directory(rootInode, entry{rootInode, "."}, entry{rootInode, ".."}, entry{lostFoundInode, "lost+found"})),
		m.at(lost, m.directory(lostFoundInode, entry{lostFoundInode, "."}, entry{rootInode, ".."})),
		m.at(journal, m.journalSuper()),
	)
}

// setBits sets the first n bits.
func setBits(bitmap []byte, n uint32) {
	for i := range n {
		bitmap[i/8] |= 1 << (i % 8)
	}
}

// inode is one whose content is the blocks from first on.
func (m *maker) inode(number uint32, mode, links uint16, first, blocks uint32) []byte {
	b := make([]byte, inodeBytes)
	le.PutUint16(b[0x0:], mode)
	le.PutUint32(b[0x4:], blocks*blockBytes)
	for _, at := range []int{0x8, 0xC, 0x10, 0x90} {
		le.PutUint32(b[at:], m.now)
	}
	le.PutUint16(b[0x1A:], links)
	le.PutUint32(b[0x1C:], blocks*(blockBytes/512))
	le.PutUint32(b[0x20:], 0x80000) // its blocks are extents
	le.PutUint16(b[0x28:], 0xF30A)
	le.PutUint16(b[0x2A:], 1) // extents
	le.PutUint16(b[0x2C:], 4) // there is room for
	le.PutUint16(b[0x38:], uint16(blocks))
	le.PutUint32(b[0x3C:], first)
	le.PutUint16(b[0x80:], 32) // bytes beyond the old 128
	sum := checksum(m.inodeSeed(number), b)
	le.PutUint16(b[0x7C:], uint16(sum))
	le.PutUint16(b[0x82:], uint16(sum>>16))
	return b
}

// inodeSeed begins the checksums of an inode of generation 0 and of its blocks.
func (m *maker) inodeSeed(number uint32) uint32 { return checksum(m.seed, le32(number), le32(0)) }

// entry is a directory in a directory.
type entry struct {
	inode uint32
	name  string
}

// directory is the block of one, with its checksum in the place of a last entry.
func (m *maker) directory(number uint32, entries ...entry) []byte {
	const tail = 12
	b := make([]byte, blockBytes)
	at := 0
	for i, e := range entries {
		length := (8 + len(e.name) + 3) &^ 3
		if i == len(entries)-1 {
			length = blockBytes - tail - at
		}
		le.PutUint32(b[at:], e.inode)
		le.PutUint16(b[at+4:], uint16(length))
		b[at+6], b[at+7] = byte(len(e.name)), 2 // a directory
		copy(b[at+8:], e.name)
		at += length
	}
	le.PutUint16(b[at+4:], tail)
	b[at+7] = 0xDE
	le.PutUint32(b[at+8:], checksum(m.inodeSeed(number), b[:at]))
	return b
}

// journalSuper is the first block of an empty journal (jbd2), which is big-endian.
func (m *maker) journalSuper() []byte {
	b := make([]byte, blockBytes)
	be := binary.BigEndian
	for i, v := range []uint32{0xC03B3998, 4, 0, blockBytes, m.journal, 1, 1} { // magic, superblock v2, -, block size, blocks, first, sequence
		be.PutUint32(b[4*i:], v)
	}
	copy(b[0x30:], m.uuid)
	be.PutUint32(b[0x40:], 1) // users
	return b
}

// firstGroup is the descriptor of the group that has the files.
func (m *maker) firstGroup() []byte {
	g := groupAt(0)
	d := g.unused(m.seed)
	le.PutUint16(d[0xC:], uint16(m.freeInFirst()))
	le.PutUint16(d[0xE:], groupInodes-lostFoundInode)
	le.PutUint16(d[0x10:], 2) // directories
	le.PutUint16(d[0x12:], groupTableZeroed)
	le.PutUint16(d[0x18:], uint16(checksum(m.seed, m.blockBitmap)))
	le.PutUint16(d[0x1A:], uint16(checksum(m.seed, m.inodeBitmap[:groupInodes/8])))
	le.PutUint16(d[0x1C:], groupInodes-lostFoundInode)
	g.sign(d, m.seed)
	return d
}

func (m *maker) freeInFirst() uint32 { return groupBlocks - groupAt(0).used - 2 - m.journal }

func (m *maker) superblock() superblock {
	s := make(superblock, superBytes)
	for at, v := range map[int]uint32{
		0x0: m.groups * groupInodes, 0x4: m.groups * groupBlocks,
		0xC: m.freeInFirst() + freeBlocks(1, m.groups), 0x10: m.groups*groupInodes - lostFoundInode,
		0x18: 2, 0x1C: 2, // blocks and clusters of 1 KiB << 2
		0x20: groupBlocks, 0x24: groupBlocks, 0x28: groupInodes,
		0x30: m.now, 0x40: m.now, 0x108: m.now,
		0x4C: 1,              // revision with features
		0x54: lostFoundInode, // first that is not reserved
		0x5C: compatFeatures, 0x60: incompatFeatures, 0x64: roCompatFeatures,
		0xE0:  journalInode,
		0x100: 0xC, // mount with user_xattr and acl
		0x160: 1,   // names are hashed as signed bytes
	} {
		le.PutUint32(s[at:], v)
	}
	for at, v := range map[int]uint16{
		0x36: 0xFFFF, // never checked for having been mounted often
		0x38: 0xEF53,
		0x3A: 1, // clean
		0x3C: 2, // read-only from an error on
		0x58: inodeBytes, 0x15C: 32, 0x15E: 32,
	} {
		le.PutUint16(s[at:], v)
	}
	copy(s[0x68:], m.uuid)
	copy(s[0x78:], "den-store")
	copy(s[0xEC:], m.uuid) // seed of the hash of names
	s[0xFC] = 1            // half MD4
	s[0xFD] = 1            // what follows is a copy of the journal's inode
	copy(s[0x10C:], m.jblocks)
	le.PutUint32(s[0x10C+16*4:], m.journal*blockBytes)
	s[0x175] = 1 // crc32c
	return s
}

// freeBlocks counts what groups without files have to give.
func freeBlocks(from, to uint32) (n uint32) {
	for g := from; g < to; g++ {
		n += groupBlocks - groupAt(g).used
	}
	return n
}

// writeDescriptors describes groups [from, to) as unused, but for first if it is
// given, in their meta groups' blocks and the copies of these.
func writeDescriptors(f io.WriterAt, from, to, seed uint32, first []byte) error {
	for start := from; start < to; {
		meta := start / groupsPerMeta * groupsPerMeta
		end := min(to, meta+groupsPerMeta)
		var b []byte
		for g := start; g < end; g++ {
			switch {
			case g == 0:
				b = append(b, first...)
			case g == to-1:
				d, err := groupAt(g).writeBitmap(f, seed)
				if err != nil {
					return err
				}
				b = append(b, d...)
			default:
				b = append(b, groupAt(g).unused(seed)...)
			}
		}
		// A copy is there when its group is.
		for _, g := range []uint32{meta, meta + 1, meta + groupsPerMeta - 1} {
			if g >= to {
				continue
			}
			at := int64(groupAt(g).descriptors)*blockBytes + int64(start-meta)*descBytes
			if _, err := f.WriteAt(b, at); err != nil {
				return err
			}
		}
		start = end
	}
	return nil
}

// writeBitmap is unused for the last group, whose block bitmap e2fsck wants to see.
func (g group) writeBitmap(f io.WriterAt, seed uint32) ([]byte, error) {
	bitmap := make([]byte, blockBytes)
	setBits(bitmap, g.used)
	d := g.unused(seed)
	le.PutUint16(d[0x12:], groupInodesUnused|groupTableZeroed)
	le.PutUint16(d[0x18:], uint16(checksum(seed, bitmap)))
	g.sign(d, seed)
	_, err := f.WriteAt(bitmap, int64(g.blockBitmap)*blockBytes)
	return d, err
}

// writeSuper writes the copies and then s itself.
func writeSuper(f io.WriterAt, s superblock) error {
	for g := s.groups() - 1; g > 0; g-- {
		if !hasSuper(g) {
			continue
		}
		if _, err := f.WriteAt(s.copyFor(g), int64(groupAt(g).first)*blockBytes); err != nil {
			return err
		}
	}
	_, err := f.WriteAt(s.copyFor(0), superOffset)
	return err
}
