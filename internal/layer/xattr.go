package layer

import (
	"strings"

	"den/internal/sys"
)

const (
	// paxXattr precedes the name of an extended attribute in a PAX record.
	paxXattr = "SCHILY.xattr."

	// maxXattrs bounds the attributes of one entry.
	maxXattrs = 256
)

// paxXattrs takes an entry's attributes out of its PAX records.
func paxXattrs(records map[string]string) (map[string][]byte, error) {
	var xattrs map[string][]byte
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !sys.KeepXattr(name) {
			continue
		}
		if len(value) > sys.MaxXattr {
			return nil, invalid("extended attribute %.80q is %d bytes long, the limit is %d", name, len(value), sys.MaxXattr)
		}
		if len(xattrs) == maxXattrs {
			return nil, invalid("more than %d extended attributes", maxXattrs)
		}
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		xattrs[name] = []byte(value)
	}
	return xattrs, nil
}
