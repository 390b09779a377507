package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"den/internal/durable"
)

// maxMoves bounds the search for processes that are to be put into a cgroup while they make others.
const maxMoves = 64

// SetLimits puts r in force at once. A sandbox that had no limits, and so no cgroup, is put into
// one with all its processes. An error of class errdefs.ErrUnavailable says that there can be none.
func (s *running) SetLimits(_ context.Context, r *specs.LinuxResources) error {
	if s.parent != nil {
		return fmt.Errorf("sandbox %s: limits: they are those of %s: %w", s.id, s.parent.id, errdefs.ErrInvalidArgument)
	}
	s.limiting.Lock()
	defer s.limiting.Unlock()
	if s.ended || !s.lives() {
		return fmt.Errorf("sandbox %s: limits: %w", s.id, os.ErrProcessDone)
	}
	rs, controllers := limits(r)
	c := s.cgroup.Load()
	if c == nil && len(controllers) == 0 {
		return nil
	}
	c, err := s.widened(c, controllers)
	if err != nil {
		return fmt.Errorf("sandbox %s: limits of %s are not in force: %w: %w", s.id, limited(controllers), err, errdefs.ErrUnavailable)
	}
	lift(rs, c.m.GetPaths(), c.v)
	var weightless error
	if err := setAll(c.m, rs, func(err error) { weightless = err }); err != nil {
		return fmt.Errorf("sandbox %s: limits: %w", s.id, err)
	}
	c.controllers = controllers
	if weightless != nil {
		return fmt.Errorf("sandbox %s: the weight of block devices is not in force: %w: %w", s.id, weightless, errdefs.ErrUnavailable)
	}
	return nil
}

// widened is a cgroup with these controllers that has all of the sandbox's processes: c, or a new one.
func (s *running) widened(c *cgroup, controllers []string) (*cgroup, error) {
	paths, version := map[string]string{}, s.n.cgroupVersion()
	if c != nil {
		maps.Copy(paths, c.m.GetPaths())
		version = c.v
	}
	name := "den-" + s.id
	for controller, path := range paths {
		name = filepath.Base(path)
		if own, err := cgroups.GetOwnCgroupPath(controller); err == nil && version == 1 {
			if rel, ok := strings.CutPrefix(path, strings.TrimSuffix(own, "/")+"/"); ok {
				name = rel
				break
			}
		}
	}
	if version == 1 || c == nil {
		more, err := cgroupPaths(version, name, controllers)
		if err != nil {
			return nil, err
		}
		for controller, path := range more {
			if _, has := paths[controller]; !has {
				paths[controller] = path
			}
		}
	} else {
		enableBeside(paths[""], controllers)
	}
	if c != nil && maps.Equal(paths, c.m.GetPaths()) && allThere(paths) {
		return c, nil
	}
	m, err := newCgroupManager(version, name, paths)
	if err != nil {
		return nil, err
	}
	// Whoever adopts the sandbox has to know of the cgroup before it is there.
	if err := s.detached.noteCgroup(version, paths); err != nil {
		return nil, err
	}
	wider := &cgroup{r: &Request{ID: s.id}, m: m, v: version, controllers: controllers, parents: parentsOf(paths, name)}
	if err := m.Apply(-1); err != nil {
		if c == nil {
			wider.remove() // what was made of it
		}
		return nil, err
	}
	// What is started from now on is put in, too.
	s.cgroup.Store(wider)
	return wider, s.move(wider)
}

// move puts all of the sandbox's processes into c, parents before their children.
func (s *running) move(c *cgroup) error {
	moved := map[int]bool{}
	for range maxMoves {
		before := len(moved)
		for _, pid := range s.tree() {
			if moved[pid] {
				continue
			}
			moved[pid] = true
			for _, dir := range c.m.GetPaths() {
				if err := cgroups.WriteCgroupProc(dir, pid); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
		}
		if len(moved) == before {
			return nil
		}
	}
	return errors.New("its processes make others faster than they can be put into a cgroup")
}

func allThere(paths map[string]string) bool {
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// enableBeside enables controllers for a cgroup of version 2. That one is not to be had shows
// when its limit is set.
func enableBeside(dir string, controllers []string) {
	for _, c := range controllers {
		if c == "blkio" {
			c = "io"
		}
		_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// lift takes back what rs does not limit, where a cgroup can have had a limit. Which processors
// it may use stays.
func lift(rs *cgroups.Resources, paths map[string]string, version int) {
	has := func(controller string) bool {
		_, has := paths[controller]
		return has || version == 2
	}
	if has("memory") {
		if rs.Memory == 0 { // and swap with it, where the kernel counts that
			rs.Memory = -1
		}
	}
	if has("cpu") {
		if rs.CpuQuota == 0 {
			rs.CpuQuota, rs.CpuPeriod = -1, 100_000 // cgroup-v2.rst, cpu.max
		}
		if rs.CpuShares == 0 {
			setShares(rs, 1024) // cgroup-v1/cpu.shares's own
		}
	}
	if has("pids") && rs.PidsLimit == nil {
		none := int64(-1)
		rs.PidsLimit = &none
	}
}

// setShares sets the part of the processors in the words of both versions.
func setShares(rs *cgroups.Resources, shares uint64) {
	rs.CpuShares, rs.CpuWeight = shares, cgroups.ConvertCPUSharesToCgroupV2Value(shares)
}

// fileCgroup is the cgroup that a detached sandbox got, or another one got more controllers of,
// after its start. It is replaced whole.
const fileCgroup = "cgroup"

// cgroupState is the file cgroup. Fields are only added.
type cgroupState struct {
	Version int
	Paths   map[string]string
}

func (d *detached) noteCgroup(version int, paths map[string]string) error {
	if d == nil {
		return nil
	}
	b, err := json.Marshal(cgroupState{version, paths})
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(d.dir.Name(), fileCgroup), b, 0o600)
}

// cgroupNoted is where the cgroup is that the sandbox got last.
func (d *detached) cgroupNoted(st *detachState) (cgroupState, error) {
	noted := cgroupState{st.CgroupVersion, st.Cgroups}
	name := filepath.Join(d.dir.Name(), fileCgroup)
	b, err := readBounded(name)
	if errors.Is(err, os.ErrNotExist) {
		return noted, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &noted)
	}
	if err != nil {
		return noted, fmt.Errorf("%s: %w", name, err)
	}
	return noted, nil
}
