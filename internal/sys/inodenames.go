package sys

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// NamesAttr on a directory says who owns the entries that cannot have
// InodeAttr: symbolic links, named pipes, sockets and device nodes, on which
// the kernel allows no user attributes. A record of a name counts as long as
// the name is of the type that it says. The value:
//
//	1       version, 1
//	1       flags: 1 some file in the directory stands for a node,
//	        2 links without a record have the owner that follows
//	uvarint uid, uvarint gid of such links, with flag 2
//	then per name, sorted:
//	uvarint length, name
//	2       type and permissions, little endian
//	uvarint uid, uvarint gid
//
// ext4 keeps all attributes of a file in one block, hence MaxNames and the
// owner of links that have no record: see Shrink.
const NamesAttr = "user.den.names"

// MaxNames is the longest value of NamesAttr that is written.
const MaxNames = 3 << 10

const (
	namesVersion = 1

	namesStandIns = 1
	namesLinks    = 2
)

// Names is what NamesAttr says. The zero value says nothing.
type Names struct {
	// StandIns says that directory entries that look like regular files may
	// stand for nodes.
	StandIns bool
	// Links owns the symbolic links that have no record; nil: nobody said.
	Links *Owner
	// Of are the records. Their device numbers are those of the nodes.
	Of map[string]Inode
}

// Lookup returns what is recorded of a name whose type on disk is mode's.
func (n *Names) Lookup(name string, mode uint32) (Inode, bool) {
	kind := mode & unix.S_IFMT
	if i, ok := n.Of[name]; ok && i.Mode&unix.S_IFMT == kind {
		return i, true
	}
	if kind == unix.S_IFLNK && n.Links != nil {
		return Inode{Mode: mode, UID: n.Links.UID, GID: n.Links.GID}, true
	}
	return Inode{}, false
}

// Set records a name. It reports whether that changed anything.
func (n *Names) Set(name string, i Inode) bool {
	i.Rdev = 0
	if n.Links != nil && i.Mode&unix.S_IFMT == unix.S_IFLNK && (Owner{i.UID, i.GID}) == *n.Links {
		return n.Drop(name)
	}
	if old, ok := n.Of[name]; ok && old == i {
		return false
	}
	if n.Of == nil {
		n.Of = map[string]Inode{}
	}
	n.Of[name] = i
	return true
}

// Drop forgets a name. It reports whether there was anything to forget.
func (n *Names) Drop(name string) bool {
	_, ok := n.Of[name]
	delete(n.Of, name)
	return ok
}

// Shrink makes the most frequent owner of links the owner of all that have no
// record. links are all of the directory, with what they seem to be owned by
// without any of these records.
func (n *Names) Shrink(links map[string]Owner) {
	count := map[Owner]int{}
	all := map[string]Owner{}
	for name, bare := range links {
		o := bare
		if i, ok := n.Lookup(name, unix.S_IFLNK); ok {
			o = Owner{i.UID, i.GID}
		}
		all[name] = o
		count[o]++
	}
	maps.DeleteFunc(n.Of, func(_ string, i Inode) bool { return i.Mode&unix.S_IFMT == unix.S_IFLNK })
	if len(count) == 0 {
		return
	}
	most := Owner{noID, noID}
	for o, times := range count {
		if times > count[most] || (times == count[most] && (o.UID < most.UID || o.UID == most.UID && o.GID < most.GID)) {
			most = o
		}
	}
	n.Links = &most
	for name, o := range all {
		n.Set(name, Inode{Mode: unix.S_IFLNK | 0o777, UID: o.UID, GID: o.GID})
	}
}

// Format is the value of NamesAttr, or nil if there is nothing to say.
func (n *Names) Format() []byte {
	if !n.StandIns && n.Links == nil && len(n.Of) == 0 {
		return nil
	}
	b := []byte{namesVersion, 0}
	if n.StandIns {
		b[1] |= namesStandIns
	}
	if n.Links != nil {
		b[1] |= namesLinks
		b = binary.AppendUvarint(b, uint64(n.Links.UID))
		b = binary.AppendUvarint(b, uint64(n.Links.GID))
	}
	for _, name := range slices.Sorted(maps.Keys(n.Of)) {
		i := n.Of[name]
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.LittleEndian.AppendUint16(b, uint16(i.Mode))
		b = binary.AppendUvarint(b, uint64(i.UID))
		b = binary.AppendUvarint(b, uint64(i.GID))
	}
	return b
}

// ParseNames reads the value of NamesAttr. It takes only what Format writes.
func ParseNames(b []byte) (Names, bool) {
	if len(b) < 2 || len(b) > MaxXattr || b[0] != namesVersion || b[1]&^(namesStandIns|namesLinks) != 0 {
		return Names{}, false
	}
	n := Names{StandIns: b[1]&namesStandIns != 0}
	p := namesParser{rest: b[2:]}
	if b[1]&namesLinks != 0 {
		n.Links = &Owner{UID: p.id(), GID: p.id()}
	}
	last := ""
	for len(p.rest) > 0 && !p.bad {
		name := p.name()
		i := Inode{Mode: p.mode()}
		i.UID, i.GID = p.id(), p.id()
		if p.bad || name <= last || !i.sound() || !special(i.Mode) {
			return Names{}, false
		}
		if n.Of == nil {
			n.Of = map[string]Inode{}
		}
		n.Of[name], last = i, name
	}
	return n, !p.bad
}

// special says that a file of this type can have no user attributes.
func special(mode uint32) bool {
	return mode&unix.S_IFMT != unix.S_IFREG && mode&unix.S_IFMT != unix.S_IFDIR
}

type namesParser struct {
	rest []byte
	bad  bool
}

func (p *namesParser) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 || v > limit || (n > 1 && p.rest[n-1] == 0) { // the last: not the shortest form
		p.bad, p.rest = true, nil
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *namesParser) id() uint32 { return uint32(p.uvarint(noID - 1)) }

func (p *namesParser) take(n int) []byte {
	if n > len(p.rest) {
		p.bad, p.rest = true, nil
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

func (p *namesParser) name() string {
	name := string(p.take(int(p.uvarint(unix.NAME_MAX))))
	p.bad = p.bad || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00")
	return name
}

func (p *namesParser) mode() uint32 {
	if b := p.take(2); b != nil {
		return uint32(binary.LittleEndian.Uint16(b))
	}
	return 0
}
