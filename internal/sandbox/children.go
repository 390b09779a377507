package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// killDescendants kills what a payload without a pid namespace has left behind. New
// ones can appear while it looks, so it looks until there are none.
func killDescendants(holder int) {
	for {
		kids := children(holder)
		if len(kids) == 0 {
			return
		}
		var wg sync.WaitGroup
		for _, pid := range kids {
			// A pidfd pins the process while it is checked that it is still the holder's.
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			if parent(pid) == holder {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				wg.Go(func() {
					_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
					unix.Close(fd)
				})
				continue
			}
			unix.Close(fd)
		}
		wg.Wait()
	}
}

// children lists the direct children of pid. What lives deeper becomes a child
// of the holder, the nearest subreaper, when its parent is killed.
func children(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return scanChildren(pid)
	}
	var kids []int
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil && !zombie(n) {
			kids = append(kids, n)
		}
	}
	return kids
}

// scanChildren is for kernels without the file above.
func scanChildren(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var kids []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && parent(n) == pid && !zombie(n) {
			kids = append(kids, n)
		}
	}
	return kids
}

// stat returns the fields of a process after its name.
func stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(b, ')') // a name may contain anything
	if err != nil || i < 0 {
		return nil
	}
	return strings.Fields(string(b[i+1:]))
}

func parent(pid int) int {
	f := stat(pid)
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

func zombie(pid int) bool {
	f := stat(pid)
	return len(f) == 0 || f[0] == "Z" || f[0] == "X"
}
