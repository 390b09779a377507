package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Freezer is a Sandbox whose processes can be held for a moment.
type Freezer interface {
	// Freeze stops what runs, as far as it can, until Thaw. Both may be called in
	// any order, also when all has ended.
	Freeze()
	Thaw()
}

// freezeRounds bounds the search for processes that were made while others were stopped.
const freezeRounds = 8

// Freeze stops the payload's processes, parents before their children, so that few new
// ones appear meanwhile. Without a cgroup there is no call that stops all at once.
func (s *running) Freeze() { s.signalTree(unix.SIGSTOP) }

// Thaw lets them go on.
func (s *running) Thaw() { s.signalTree(unix.SIGCONT) }

func (s *running) signalTree(sig unix.Signal) {
	seen := map[int]bool{}
	for range freezeRounds {
		before := len(seen)
		var visit func(pid int)
		visit = func(pid int) {
			// The holder keeps the payload's id from being used again; of the others'
			// the parents, which are stopped, do. What has ended meanwhile gets nothing.
			if !seen[pid] {
				seen[pid] = true
				_ = unix.Kill(pid, sig)
			}
			for _, child := range descendants(pid) {
				visit(child)
			}
		}
		select {
		case <-s.done:
			return
		default:
		}
		// Without a pid namespace orphans become the holder's children.
		for _, holder := range s.holders() {
			for _, pid := range descendants(holder) {
				visit(pid)
			}
		}
		if len(seen) == before {
			return
		}
	}
}

// descendants are the children of all threads of pid.
func descendants(pid int) []int {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	var kids []int
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				kids = append(kids, n)
			}
		}
	}
	return kids
}
