package sandbox

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/cgroups"
)

// Pause stops the sandbox's processes until Resume: by the freezer of its cgroup, which they cannot
// notice, and without a cgroup by SIGSTOP, which their parents can.
func (s *running) Pause(context.Context) error {
	if !s.lives() {
		return fmt.Errorf("sandbox %s: pause: %w", s.id, os.ErrProcessDone)
	}
	if s.cgroup.Load().freeze(cgroups.Frozen) {
		return nil
	}
	s.Freeze()
	return nil
}

// Resume undoes Pause.
func (s *running) Resume(context.Context) error {
	if !s.lives() {
		return fmt.Errorf("sandbox %s: resume: %w", s.id, os.ErrProcessDone)
	}
	// Whoever paused it may have been another den, in another way.
	s.cgroup.Load().freeze(cgroups.Thawed)
	s.Thaw()
	return nil
}

// lives reports whether the payload's first process has not been waited for.
func (s *running) lives() bool { return s.pid != 0 && parent(s.pid) == s.holder }

// Stats are those of the cgroup where the sandbox has one, and else sums over its
// processes, of which some counters begin anew with each; pages that several share count
// for each.
func (s *running) Stats(context.Context) (Stats, error) {
	if !s.lives() {
		return Stats{}, fmt.Errorf("sandbox %s: stats: %w", s.id, os.ErrProcessDone)
	}
	st := Stats{Read: time.Now()}
	for _, pid := range s.tree() {
		st.addProcess(pid)
	}
	s.cgroup.Load().addTo(&st)
	if own, err := os.Readlink("/proc/self/ns/net"); err == nil {
		if other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.pid)); err == nil && own != other {
			st.Interfaces = readInterfaces(s.pid)
		}
	}
	return st, nil
}

// Processes lists the sandbox's processes and those of Exec.
func (s *running) Processes(context.Context) ([]Process, error) {
	if !s.lives() {
		return nil, fmt.Errorf("sandbox %s: processes: %w", s.id, os.ErrProcessDone)
	}
	names := s.userNames()
	var all []Process
	for _, pid := range s.tree() {
		if p, ok := readProcess(pid); ok {
			if p.User = names[p.UID]; p.User == "" {
				p.User = fmt.Sprint(p.UID)
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// tree is the sandbox's processes, parents before their children.
func (s *running) tree() []int {
	var pids []int
	seen := map[int]bool{}
	var visit func(pid int)
	visit = func(pid int) {
		if !seen[pid] {
			seen[pid] = true
			pids = append(pids, pid)
			for _, child := range descendants(pid) {
				visit(child)
			}
		}
	}
	for _, holder := range s.holders() {
		for _, pid := range descendants(holder) {
			visit(pid)
		}
	}
	return pids
}

// userNames are the names of the sandbox's passwd.
func (s *running) userNames() map[uint32]string {
	root, err := s.openRoot()
	if err != nil {
		return nil
	}
	defer root.Close()
	f, err := openRegular(int(root.Fd()), "etc/passwd")
	if err != nil {
		return nil
	}
	defer f.Close()
	return UserNames(f)
}
