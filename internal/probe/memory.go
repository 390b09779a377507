package probe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// MemoryLimit is how many bytes of memory this process's cgroup, and those above it as
// far as they can be seen, let it have; 0 if there is no limit.
func MemoryLimit() int64 {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	return memoryLimit("/sys/fs/cgroup", string(self))
}

// memoryLimit takes the lowest limit on the way up from the cgroup that self names, in the form
// of proc's file. In a container the path may be one outside of it; then the way begins at root.
func memoryLimit(root, self string) (limit int64) {
	for line := range strings.Lines(self) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		dir, file := root, "memory.max"
		if fields[1] == "memory" {
			dir, file = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		} else if fields[1] != "" {
			continue
		}
		for path := filepath.Clean("/" + fields[2]); ; path = filepath.Dir(path) {
			if n := limitIn(filepath.Join(dir, path, file)); n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
			if path == "/" {
				break
			}
		}
	}
	return limit
}

// unlimited is above what version 1 shows where there is no limit: the largest multiple of a page.
const unlimited = 1 << 62

func limitIn(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n <= 0 || n >= unlimited {
		return 0 // "max", too
	}
	return n
}
