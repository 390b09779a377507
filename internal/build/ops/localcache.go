package ops

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"

	"github.com/opencontainers/go-digest"

	"den/internal/oci"
)

// localSum is a sha256.
type localSum [sha256.Size]byte

func (s localSum) digest() oci.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(s[:]))
}

// localCacheMagic begins a stat cache. It changes with the format and with
// what a digest covers (appendTarsum).
const localCacheMagic = "den context stat 1\n"

// localCache remembers the digests of files by what stat(2) said of them. An
// entry is only made of a file that was left alone for localRacyNanos before it
// was read, so that any later change shows in its times, and that has no
// extended attributes.
type localCache struct {
	files map[string]localKnown
}

type localKnown struct {
	stat   localStat
	digest localSum
}

// localCacheName names the cache of one directory under one filter.
func localCacheName(dir string, f localFilter) string {
	dt, err := json.Marshal(f)
	if err != nil {
		return "" // strings always marshal
	}
	return "context-stat/" + digest.FromString(dir+"\x00"+string(dt)).Encoded()
}

// apply sets e's digest when e is a known file that was not changed.
func (c *localCache) apply(e *localEntry) bool {
	if c == nil || !e.isRegular() {
		return false
	}
	k, ok := c.files[e.Path]
	if !ok || !k.stat.same(e.stat) {
		return false
	}
	e.digest = k.digest
	return true
}

// parseLocalCache reads what encodeLocalCache wrote. Anything else is an empty
// cache.
func parseLocalCache(dt []byte) *localCache {
	body, ok := bytes.CutPrefix(dt, []byte(localCacheMagic))
	if !ok {
		return &localCache{}
	}
	d := localDecoder{s: string(body)}
	n := d.uint()
	if n > uint64(len(body)) {
		return &localCache{}
	}
	c := &localCache{files: make(map[string]localKnown, n)}
	for range n {
		path := d.bytes(d.uint())
		k := localKnown{stat: localStat{Size: d.int(), Mtime: d.int(), Ctime: d.int(), Ino: d.uint(), Mode: uint32(d.uint())}}
		copy(k.digest[:], d.bytes(sha256.Size))
		c.files[path] = k
	}
	if d.bad {
		return &localCache{}
	}
	return c
}

// localDecoder takes values off a string; one that is not there sets bad.
type localDecoder struct {
	s   string
	bad bool
}

func (d *localDecoder) uint() uint64 {
	var v uint64
	for i := 0; i < len(d.s) && i < binary.MaxVarintLen64; i++ {
		b := d.s[i]
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			d.s = d.s[i+1:]
			return v
		}
	}
	d.s, d.bad = "", true
	return 0
}

func (d *localDecoder) int() int64 {
	v := d.uint()
	return int64(v>>1) ^ -int64(v&1)
}

func (d *localDecoder) bytes(n uint64) string {
	if n > uint64(len(d.s)) {
		d.s, d.bad = "", true
		return ""
	}
	out := d.s[:n]
	d.s = d.s[n:]
	return out
}

// encodeLocalCache writes the files below root that may be remembered.
func encodeLocalCache(root *localEntry) []byte {
	out := []byte(localCacheMagic)
	var body []byte
	var n uint64
	root.each(func(e *localEntry) {
		if !e.memorable() {
			return
		}
		n++
		body = binary.AppendUvarint(body, uint64(len(e.Path)))
		body = append(body, e.Path...)
		body = binary.AppendVarint(body, e.stat.Size)
		body = binary.AppendVarint(body, e.stat.Mtime)
		body = binary.AppendVarint(body, e.stat.Ctime)
		body = binary.AppendUvarint(body, e.stat.Ino)
		body = binary.AppendUvarint(body, uint64(e.stat.Mode))
		body = append(body, e.digest[:]...)
	})
	return append(binary.AppendUvarint(out, n), body...)
}

func (e *localEntry) memorable() bool {
	return e.isRegular() && !e.racy && len(e.Xattrs) == 0
}

// stale says whether the cache that a walk began with differs from what it
// found.
func (c *localCache) stale(root *localEntry) bool {
	n, changed := 0, false
	root.each(func(e *localEntry) {
		if !e.memorable() {
			return
		}
		n++
		k, ok := c.files[e.Path]
		changed = changed || !ok || !k.stat.same(e.stat)
	})
	return changed || n != len(c.files)
}
