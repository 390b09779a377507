package sys

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// IDMap is one line of a uid_map or gid_map: Count ids from Inside on are the
// ids from Outside on in the parent user namespace.
type IDMap struct{ Inside, Outside, Count uint32 }

// SelfIDMap reads the calling process's map; kind is "uid" or "gid".
func SelfIDMap(kind string) ([]IDMap, error) {
	f, err := os.Open("/proc/self/" + kind + "_map")
	if err != nil {
		return nil, fmt.Errorf("%s map of this process: %w", kind, err)
	}
	defer f.Close()
	return parseIDMap(f)
}

func parseIDMap(r io.Reader) ([]IDMap, error) {
	var maps []IDMap
	sc := bufio.NewScanner(io.LimitReader(r, 1<<16))
	for sc.Scan() {
		var m IDMap
		if _, err := fmt.Sscan(sc.Text(), &m.Inside, &m.Outside, &m.Count); err != nil {
			return nil, fmt.Errorf("id map %.80q: %w", sc.Text(), err)
		}
		maps = append(maps, m)
	}
	return maps, sc.Err()
}

// IsInitial reports whether maps is the map of the initial user namespace, or
// one that cannot be told from it.
func IsInitial(maps []IDMap) bool {
	return len(maps) == 1 && maps[0] == IDMap{0, 0, math.MaxUint32}
}

// initialUserns is what /proc/self/ns/user shows in the initial user namespace
// (PROC_USER_INIT_INO, since Linux 3.8).
const initialUserns = "user:[4026531837]"

// InInitialUserns reports whether the process is in the initial user namespace. Its
// id maps alone do not tell: root maps all of its ids to themselves in a namespace of its own.
func InInitialUserns() bool {
	if link, err := os.Readlink("/proc/self/ns/user"); err == nil {
		return link == initialUserns
	}
	m, err := SelfIDMap("uid")
	return err != nil || IsInitial(m) // without /proc/self/uid_map the kernel has no user namespaces
}

// MakesDevices reports whether the process can make device nodes. Elsewhere than
// in the initial user namespace no capability helps.
func MakesDevices() bool {
	st, err := SelfStatus()
	return err == nil && st.Effective.Has(unix.CAP_MKNOD) && InInitialUserns()
}

// CountIDs is how many ids maps has.
func CountIDs(maps []IDMap) uint64 {
	var n uint64
	for _, m := range maps {
		n += uint64(m.Count)
	}
	return n
}

// MapsID reports whether id has a place in the namespace of maps.
func MapsID(maps []IDMap, id uint32) bool {
	for _, m := range maps {
		if id >= m.Inside && uint64(id) < uint64(m.Inside)+uint64(m.Count) {
			return true
		}
	}
	return false
}
