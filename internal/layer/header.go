package layer

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// The canonical header is written here and not by archive/tar: a diffID that
// is recorded today has to come out of the same tree after any change of the
// Go release. Format: POSIX.1-2001 (pax) interchange format, ustar headers
// wherever they suffice.
const (
	blockSize = 512
	maxOctal8 = 1<<21 - 1 // seven octal digits and a NUL
	maxOctal  = 1<<33 - 1 // eleven
)

// Type flags of a ustar header.
const (
	tarRegular  = '0'
	tarHardlink = '1'
	tarSymlink  = '2'
	tarChar     = '3'
	tarBlock    = '4'
	tarDir      = '5'
	tarFIFO     = '6'
	tarPAX      = 'x'
)

const (
	whiteoutPrefix = ".wh."
	// whiteoutMeta begins the names that AUFS kept for itself.
	whiteoutMeta = ".wh..wh."
	opaqueName   = ".wh..wh..opq"
)

// header is one tar member with nothing left to decide.
type header struct {
	name     string
	typeflag byte
	mode     uint32
	uid, gid uint32
	size     int64
	seconds  int64
	link     string
	rdev     uint64
	xattrs   map[string][]byte
}

// headerOf translates an entry. Opaque markers are separate members.
func headerOf(e *oci.Entry) (header, error) {
	h := header{name: e.Path, mode: e.Mode & 0o7777, uid: e.UID, gid: e.GID, seconds: e.ModTime.Unix(), xattrs: e.Xattrs}
	if e.ModTime.IsZero() {
		h.seconds = 0
	}
	if e.Whiteout {
		return header{name: joinPath(dirOf(e.Path), whiteoutPrefix+baseOf(e.Path)), typeflag: tarRegular}, nil
	}
	if e.Hardlink {
		h.typeflag, h.link, h.xattrs = tarHardlink, e.Link, nil
		return h, nil
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.typeflag, h.size = tarRegular, e.Size
	case unix.S_IFDIR:
		h.typeflag, h.name = tarDir, e.Path+"/"
	case unix.S_IFLNK:
		h.typeflag, h.link, h.mode = tarSymlink, e.Link, 0o777
	case unix.S_IFCHR:
		h.typeflag, h.rdev = tarChar, e.Rdev
	case unix.S_IFBLK:
		h.typeflag, h.rdev = tarBlock, e.Rdev
	case unix.S_IFIFO:
		h.typeflag = tarFIFO
	default:
		return h, invalid("mode %#o is of no type that a tar can hold", e.Mode)
	}
	return h, nil
}

// appendTo appends the header blocks, the PAX ones first where needed.
func (h *header) appendTo(b []byte) []byte {
	prefix, name, fits := splitName(h.name)
	records := h.records(fits)
	if len(records) > 0 {
		// The name of the extended header is for readers that know no PAX.
		x := header{name: "PaxHeaders.0/" + asciiName(baseOf(strings.TrimSuffix(h.name, "/"))), typeflag: tarPAX, size: int64(len(records))}
		if len(x.name) > 100 {
			x.name = x.name[:100]
		}
		b = x.block(b, "", x.name)
		b = append(b, records...)
		b = pad(b, int64(len(records)))
	}
	if !fits {
		prefix, name = "", asciiName(h.name)
		name = name[:min(len(name), 100)]
	}
	return h.block(b, prefix, name)
}

// records are the PAX records of what does not fit the ustar header, sorted by
// key.
func (h *header) records(nameFits bool) []byte {
	var keys []string
	values := map[string]string{}
	put := func(key, value string) {
		keys = append(keys, key)
		values[key] = value
	}
	if !nameFits {
		put("path", h.name)
	}
	if len(h.link) > 100 || !ascii(h.link) {
		put("linkpath", h.link)
	}
	if h.uid > maxOctal8 {
		put("uid", strconv.FormatUint(uint64(h.uid), 10))
	}
	if h.gid > maxOctal8 {
		put("gid", strconv.FormatUint(uint64(h.gid), 10))
	}
	if h.size > maxOctal {
		put("size", strconv.FormatInt(h.size, 10))
	}
	if h.seconds < 0 || h.seconds > maxOctal {
		put("mtime", strconv.FormatInt(h.seconds, 10))
	}
	for name, value := range h.xattrs {
		put(paxXattr+name, string(value))
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	var out []byte
	for _, key := range keys {
		out = appendRecord(out, key, values[key])
	}
	return out
}

// appendRecord appends "length key=value\n"; the length counts itself.
func appendRecord(b []byte, key, value string) []byte {
	rest := len(key) + len(value) + 3
	size := rest + len(strconv.Itoa(rest))
	if n := rest + len(strconv.Itoa(size)); n != size {
		size = n
	}
	b = strconv.AppendInt(b, int64(size), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

// block appends one ustar header. Numbers that do not fit are in PAX records
// and zero here.
func (h *header) block(b []byte, prefix, name string) []byte {
	start := len(b)
	b = append(b, make([]byte, blockSize)...)
	block := b[start:]
	copy(block[0:100], name)
	octal(block[100:108], uint64(h.mode))
	octal(block[108:116], uint64(h.uid))
	octal(block[116:124], uint64(h.gid))
	octal(block[124:136], uint64(h.size))
	octal(block[136:148], uint64(h.seconds))
	copy(block[148:156], "        ") // the sum counts itself as blanks
	block[156] = h.typeflag
	link := asciiName(h.link)
	copy(block[157:257], link[:min(len(link), 100)])
	copy(block[257:265], "ustar\x0000")
	octal(block[329:337], uint64(unix.Major(h.rdev)))
	octal(block[337:345], uint64(unix.Minor(h.rdev)))
	copy(block[345:500], prefix)
	var sum uint64
	for _, c := range block {
		sum += uint64(c)
	}
	octal(block[148:155], sum) // six digits, NUL, blank
	return b
}

// octal fills field with digits and a closing NUL.
func octal(field []byte, n uint64) {
	digits := len(field) - 1
	if n >= 1<<(3*digits) {
		n = 0
	}
	for i := digits - 1; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
	field[digits] = 0
}

// pad fills the last block of size bytes with zeros.
func pad(b []byte, size int64) []byte {
	if rest := size % blockSize; rest != 0 {
		b = append(b, zeros[:blockSize-rest]...)
	}
	return b
}

var zeros [2 * blockSize]byte // never written to

// splitName cuts a long name at a slash into the prefix and name fields.
func splitName(name string) (prefix, rest string, ok bool) {
	if !ascii(name) {
		return "", "", false
	}
	if len(name) <= 100 {
		return "", name, true
	}
	end := min(len(name)-1, 156) // a directory's own slash parts nothing
	i := strings.LastIndexByte(name[:end], '/')
	if i <= 0 || len(name)-i-1 > 100 {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}

// asciiName drops what a ustar field cannot hold.
func asciiName(s string) string {
	if ascii(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == 0 || r >= 0x80 {
			return -1
		}
		return r
	}, s)
}

// wholeSeconds is t as a canonical tar keeps it.
func wholeSeconds(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0)
	}
	return time.Unix(t.Unix(), 0)
}
