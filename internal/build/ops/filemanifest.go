package ops

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"den/internal/layer"
	"den/internal/oci"
)

// fileManifestMagic begins a stored manifest. It changes with the format and
// with what a sum covers.
const fileManifestMagic = "den layer manifest 2\n"

// fileManifest says what each entry of a layer was made of, so that a later
// layer of the same copy need only hold what differs.
type fileManifest struct {
	diffID  oci.Digest
	entries []manifestEntry // in the layer's order
}

type manifestEntry struct {
	path string
	kind manifestKind
	// sum covers all of the entry but its path: metadata and content, and which
	// file it is linked to.
	sum localSum
}

// manifestKind is what about an entry cannot change from one tree to another
// that is stacked on it.
type manifestKind byte

const (
	manifestDir manifestKind = 1 << iota
	manifestWhiteout
	manifestOpaque
	// manifestLinked is a file with several names.
	manifestLinked
)

// manifest describes the layer that t's files make. It is nil if the content
// of a file is not known without reading it.
func (t *fileTree) manifest() *fileManifest {
	m := &fileManifest{}
	names, first := map[*fileInode]int{}, map[*fileInode]string{}
	t.root.eachNode(".", func(p string, n *fileNode) bool {
		if names[n.fileInode]++; names[n.fileInode] == 1 {
			first[n.fileInode] = p
		}
		return true
	})
	known := t.root.eachNode(".", func(p string, n *fileNode) bool {
		e := manifestEntry{path: p}
		if n.fileInode == nil {
			e.kind = manifestWhiteout
			m.entries = append(m.entries, e)
			return true
		}
		if isDir(&n.Entry) {
			e.kind = manifestDir
		}
		if n.opaque {
			e.kind |= manifestOpaque
		}
		if names[n.fileInode] > 1 {
			e.kind |= manifestLinked
		}
		if n.Mode&unix.S_IFMT == unix.S_IFREG && n.Size > 0 && !n.sum.known() {
			return false
		}
		e.sum = n.manifestSum()
		if e.kind&manifestLinked != 0 {
			// Equal files may be linked otherwise than they were.
			e.sum = sha256.Sum256(append(e.sum[:], first[n.fileInode]...))
		}
		m.entries = append(m.entries, e)
		return true
	})
	if !known {
		return nil
	}
	return m
}

// eachNode calls f for all names below n, in the layer's order, until it
// returns false.
func (n *fileNode) eachNode(p string, f func(string, *fileNode) bool) bool {
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		c, cp := n.children[name], path.Join(p, name)
		if !f(cp, c) || !c.eachNode(cp, f) {
			return false
		}
	}
	return true
}

func (s localSum) known() bool { return s != localSum{} }

func (f *fileInode) manifestSum() localSum {
	b := make([]byte, 0, 128)
	for _, v := range []uint64{uint64(f.Mode), uint64(f.UID), uint64(f.GID), uint64(f.Size), uint64(f.ModTime.Unix()), f.Rdev, uint64(len(f.Link))} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = append(b, f.Link...)
	b = append(b, f.sum[:]...)
	for _, k := range slices.Sorted(maps.Keys(f.Xattrs)) {
		b = binary.AppendUvarint(b, uint64(len(k)))
		b = append(b, k...)
		b = binary.AppendUvarint(b, uint64(len(f.Xattrs[k])))
		b = append(b, f.Xattrs[k]...)
	}
	return sha256.Sum256(b)
}

// encode writes the manifest; a path begins with what it shares with the one
// before.
func (m *fileManifest) encode() []byte {
	out := []byte(fileManifestMagic)
	out = binary.AppendUvarint(out, uint64(len(m.diffID)))
	out = append(out, m.diffID...)
	out = binary.AppendUvarint(out, uint64(len(m.entries)))
	last := ""
	for _, e := range m.entries {
		shared := 0
		for shared < len(last) && shared < len(e.path) && last[shared] == e.path[shared] {
			shared++
		}
		out = binary.AppendUvarint(out, uint64(shared))
		out = binary.AppendUvarint(out, uint64(len(e.path)-shared))
		out = append(out, e.path[shared:]...)
		out = append(out, byte(e.kind))
		out = append(out, e.sum[:]...)
		last = e.path
	}
	return out
}

// parseFileManifest reads what encode wrote, and returns nil for anything else.
func parseFileManifest(dt []byte) *fileManifest {
	body, ok := strings.CutPrefix(string(dt), fileManifestMagic)
	if !ok {
		return nil
	}
	d := localDecoder{s: body}
	m := &fileManifest{diffID: oci.Digest(d.bytes(d.uint()))}
	n := d.uint()
	if d.bad || n > uint64(len(body)) || oci.CheckDigest(m.diffID) != nil {
		return nil
	}
	last := ""
	for range n {
		shared := d.uint()
		if shared > uint64(len(last)) {
			return nil
		}
		e := manifestEntry{path: last[:shared] + d.bytes(d.uint())}
		if k := d.bytes(1); k != "" {
			e.kind = manifestKind(k[0])
		}
		copy(e.sum[:], d.bytes(sha256.Size))
		if d.bad || len(e.path) > unix.PathMax || last != "" && layer.ComparePaths(last, e.path) >= 0 {
			return nil
		}
		last = e.path
		m.entries = append(m.entries, e)
	}
	return m
}

// manifestChange is what of a layer is not in an earlier one.
type manifestChange struct {
	// paths are those to make anew, with the directories that they are in.
	paths map[string]bool
	// added are those of them that the earlier layer does not have.
	added map[string]bool
	count int // without the directories on the way
}

// since compares m with an earlier manifest. It is nil if a tree stacked on
// the earlier one cannot show m: something was removed, became something else,
// or is linked.
func (m *fileManifest) since(earlier *fileManifest) *manifestChange {
	c := &manifestChange{paths: map[string]bool{}, added: map[string]bool{}}
	old := earlier.entries
	for _, e := range m.entries {
		if len(old) > 0 && old[0].path == e.path {
			was := old[0]
			old = old[1:]
			if was.kind != e.kind {
				return nil
			}
			if was.sum == e.sum {
				continue
			}
		} else {
			if len(old) > 0 && layer.ComparePaths(old[0].path, e.path) < 0 {
				return nil // removed
			}
			c.added[e.path] = true
		}
		if e.kind&(manifestWhiteout|manifestLinked) != 0 {
			return nil
		}
		c.count++
		for p := e.path; p != "." && !c.paths[p]; p = path.Dir(p) {
			c.paths[p] = true
		}
	}
	if len(old) > 0 {
		return nil
	}
	return c
}
