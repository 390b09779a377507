package probe

import (
	"bufio"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits are what the outer container may use, as far as it is told. 0 is no limit
// that can be seen.
type Limits struct {
	// MemoryBytes is the lowest limit of the cgroups around den, MemoryUsedBytes
	// what counts against that one.
	MemoryBytes, MemoryUsedBytes int64
	// MemoryFixedBytes is the part of what is used that is no cache of files on disk.
	MemoryFixedBytes int64
	// MachineBytes is the machine's memory.
	MachineBytes int64
	// Pids is how many processes and threads there may be, PidsUsed how many there are.
	Pids, PidsUsed int64
}

// ReadLimits reads the limits of the cgroups around this process, of version 1 or 2.
func ReadLimits() Limits {
	l := limitsBelow(os.DirFS("/"))
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		l.MachineBytes = int64(uint64(info.Totalram) * uint64(info.Unit))
	}
	return l
}

// MemoryLimit is how many bytes of memory this process's cgroup, and those above it as
// far as they can be seen, let it have; 0 if there is no limit.
func MemoryLimit() int64 { return limitsBelow(os.DirFS("/")).MemoryBytes }

const (
	maxCgroupLines = 64
	maxStatBytes   = 64 << 10
	// maxCgroupDepth is how many cgroups above each other are looked at.
	maxCgroupDepth = 32
)

// limitsBelow is ReadLimits with another root directory.
//
// /proc/self/cgroup says where den is as the initial cgroup namespace sees it,
// or as its own does, while what is mounted at /sys/fs/cgroup may be the whole tree
// or only den's own: where the path is not there the root of the mount is den's.
func limitsBelow(root fs.FS) Limits {
	var l Limits
	f, err := root.Open("proc/self/cgroup")
	if err != nil {
		l.take(root, "sys/fs/cgroup", "/", true)
		return l
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for n := 0; n < maxCgroupLines && sc.Scan(); n++ {
		// ID:CONTROLLERS:PATH (cgroups(7)); version 2 is "0::PATH".
		parts := strings.SplitN(sc.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			l.take(root, "sys/fs/cgroup", parts[2], true)
		case hasController(parts[1], "memory"):
			l.take(root, "sys/fs/cgroup/memory", parts[2], false)
		case hasController(parts[1], "pids"):
			l.take(root, "sys/fs/cgroup/pids", parts[2], false)
		}
	}
	return l
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// take lowers the limits to those of a cgroup and all above it, up to where they
// are mounted.
func (l *Limits) take(root fs.FS, mount, own string, unified bool) {
	names := struct{ limit, used, inactive, active string }{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"}
	if unified {
		names.limit, names.used, names.inactive, names.active = "memory.max", "memory.current", "inactive_file", "active_file"
	}
	dir := path.Join(mount, path.Join("/", own))
	for range maxCgroupDepth {
		if lower(&l.MemoryBytes, &l.MemoryUsedBytes, readNumber(root, path.Join(dir, names.limit)), readNumber(root, path.Join(dir, names.used))) {
			l.MemoryFixedBytes = max(0, l.MemoryUsedBytes-statNumber(root, path.Join(dir, "memory.stat"), names.inactive)-statNumber(root, path.Join(dir, "memory.stat"), names.active))
		}
		lower(&l.Pids, &l.PidsUsed, readNumber(root, path.Join(dir, "pids.max")), readNumber(root, path.Join(dir, "pids.current")))
		if dir == mount {
			return
		}
		dir = path.Dir(dir)
	}
}

// lower takes over a limit that is lower, with its use.
func lower(limit, used *int64, newLimit, newUsed int64) bool {
	if newLimit <= 0 || *limit != 0 && newLimit >= *limit {
		return false
	}
	*limit, *used = newLimit, newUsed
	return true
}

// statNumber is a line of a file like memory.stat; 0 for one that is missing.
func statNumber(root fs.FS, file, name string) int64 {
	f, err := root.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, maxStatBytes))
	for sc.Scan() {
		if key, value, ok := strings.Cut(sc.Text(), " "); ok && key == name {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 {
				return 0
			}
			return n
		}
	}
	return 0
}

// unlimited is where version 1's "no limit" begins: LONG_MAX in whole pages.
const unlimited = 1 << 62

// readNumber is 0 for a file that is missing or says "max".
func readNumber(root fs.FS, name string) int64 {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 || n >= unlimited {
		return 0
	}
	return n
}
