package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"

	"den/internal/probe"
)

// controlled2 is the directory of the cgroup of version 2 around den, with the controllers enabled for its children.
func controlled2(controllers []string) (string, error) {
	own, err := probe.OwnCgroup2()
	if err != nil {
		return "", err
	}
	return own.Dir, enable(own, controllers)
}

// movingRounds bounds the moving of processes that make others meanwhile.
const movingRounds = 10

// enable gives the children of own controllers, and makes room for that.
//
// Where there are processes the kernel enables pids, cpu and cpuset all the same, and makes the cgroup a "threaded domain" by it,
// in which memory can never be limited again (cgroup-v2.rst, "Threads"). So one of the others is always enabled with
// them: the kernel refuses that there (EBUSY), and keeps new processes out afterwards.
func enable(own probe.Cgroup2, controllers []string) error {
	has, err := os.ReadFile(filepath.Join(own.Dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	available := strings.Fields(string(has))
	var words []string
	for _, c := range controllers {
		if c == "blkio" {
			c = "io"
		}
		if !slices.Contains(available, c) {
			return fmt.Errorf("cgroup %s has no controller %s: whoever made it has to delegate that", own.Path, c)
		}
		words = append(words, c)
	}
	domain := slices.IndexFunc(available, func(c string) bool { return !threaded(c) })
	if slices.Contains(available, "memory") {
		words = append(words, "memory")
	} else if domain >= 0 {
		words = append(words, available[domain])
	}
	control := filepath.Join(own.Dir, "cgroup.subtree_control")
	for range movingRounds {
		err = unix.EBUSY
		if domain >= 0 || !own.Inhabited() {
			err = os.WriteFile(control, []byte("+"+strings.Join(words, " +")), 0)
		}
		if !errors.Is(err, unix.EBUSY) || !own.Whole {
			break
		}
		if err := moveToLeaf(own.Dir); err != nil {
			return err
		}
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("cgroup %s has processes of its own that cannot be moved: start the outer container with a cgroup namespace (--cgroupns=private)", own.Path)
	}
	if err != nil {
		return err
	}
	for _, c := range []string{"pids", "cpu", "io"} { // to count, where they are to be had
		_ = os.WriteFile(control, []byte("+"+c), 0)
	}
	return nil
}

// threaded reports whether a controller can limit threads apart from each other (cgroup-v2.rst, "Threads").
func threaded(controller string) bool {
	return slices.Contains([]string{"cpu", "cpuset", "perf_event", "pids"}, controller)
}

// A unified cgroup is of version 2. Its own manager enables every controller in every cgroup between the root of the mount and it,
// also above the outer container's, where nothing is den's to change.
type unified struct {
	*fs2.Manager
	dir, name string // the directory ends in the name, which may have parents
}

// Apply makes the cgroup and puts a process in; -1 is none. Another sandbox may take a parent that both have away with
// its own end, as long as nothing is in it.
func (u *unified) Apply(pid int) (err error) {
	for range movingRounds {
		if err = u.make(); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return err
	}
	return cgroups.WriteCgroupProc(u.dir, pid)
}

func (u *unified) make() error {
	dir := strings.TrimSuffix(u.dir, "/"+u.name)
	for i, part := range strings.Split(u.name, "/") {
		if i > 0 { // nothing runs in a parent, so that it may pass on all that it has
			has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
			if err != nil {
				return err
			}
			for _, c := range strings.Fields(string(has)) {
				_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0) // what is missing, setting a limit says
			}
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// moveToLeaf moves the processes of the outer container's cgroup to a child of it.
func moveToLeaf(dir string) error {
	leaf := filepath.Join(dir, probe.LeafCgroup)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(b)) {
		if pid == "0" {
			continue // of a pid namespace that den does not see; written back, it would be den itself
		}
		err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(pid), 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
