package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// A cgroup carries the limits of one sandbox. The nil cgroup has none.
type cgroup struct {
	r  *Request
	m  cgroupManager
	rs *cgroups.Resources
	v  int

	controllers []string    // of the limits that were asked for
	parents     []string    // directories of the specification's path, deepest first
	refused     atomic.Bool // the payload could not be put in, which was said
}

// cgroupManager is what is used of the managers for versions 1 and 2.
type cgroupManager interface {
	Apply(pid int) error
	Set(*cgroups.Resources) error
	Destroy() error
	OOMKillCount() (uint64, error)
	GetPaths() map[string]string
	GetStats() (*cgroups.Stats, error)
	Freeze(cgroups.FreezerState) error
	GetFreezerState() (cgroups.FreezerState, error)
}

// cgroupVersion is 2, 1 or, without cgroups, 0.
func cgroupVersion() int {
	var st unix.Statfs_t
	if unix.Statfs(cgroupRoot, &st) != nil {
		return 0
	}
	if uint32(st.Type) == unix.CGROUP2_SUPER_MAGIC {
		return 2
	}
	if unix.Statfs(cgroupRoot+"/memory", &st) == nil && uint32(st.Type) == unix.CGROUP_SUPER_MAGIC {
		return 1
	}
	return 0
}

// newCgroup prepares a cgroup below den's own if r asks for limits, or for a place of its own. That
// there can be none is a warning: what runs without a limit still runs.
func newCgroup(r *Request, version int) *cgroup {
	rs, controllers := limits(r.Spec.Linux.Resources)
	if len(controllers) == 0 && r.Spec.Linux.CgroupsPath == "" {
		return nil
	}
	c := &cgroup{r: r, rs: rs, v: version, controllers: controllers}
	// A path of the specification is taken below den's own cgroup, never above.
	name := strings.TrimPrefix(inside(r.Spec.Linux.CgroupsPath), "/")
	if name == "" {
		name = "den-" + r.ID
	}
	paths, err := cgroupPaths(version, name, controllers)
	if err == nil {
		c.parents = parentsOf(paths, name)
		c.m, err = newCgroupManager(version, name, paths)
	}
	if err != nil {
		c.warn(err)
		return nil
	}
	return c
}

// cgroupPaths is where a cgroup below den's own is: a directory of each controller, or for
// version 2 the one directory.
func cgroupPaths(version int, name string, controllers []string) (map[string]string, error) {
	switch version {
	case 2:
		dir, err := controlled2(controllers)
		return map[string]string{"": filepath.Join(dir, name)}, err
	case 1:
		paths := map[string]string{}
		for _, c := range controllers {
			own, err := cgroups.GetOwnCgroupPath(c)
			if err != nil {
				return nil, err
			}
			paths[c] = filepath.Join(own, name)
		}
		for _, c := range countingControllers {
			if own, err := cgroups.GetOwnCgroupPath(c); err == nil && mountedWritable(own) {
				paths[c] = filepath.Join(own, name)
			}
		}
		if len(paths) == 0 {
			return nil, errors.New("none of the cgroup controllers in " + cgroupRoot + " can be written")
		}
		return paths, nil
	}
	return nil, errors.New("no cgroup file system at " + cgroupRoot)
}

// parentsOf are the directories between those that den is in and the cgroup name, deepest first.
func parentsOf(paths map[string]string, name string) (dirs []string) {
	for _, path := range paths {
		for range strings.Count(name, "/") {
			path = filepath.Dir(path)
			dirs = append(dirs, path)
		}
	}
	return dirs
}

// countingControllers limit nothing: they count what Stats says, and pause. A sandbox with
// a cgroup is in those of version 1 that can be written, too; version 2 has them in one place.
var countingControllers = []string{"cpuacct", "memory", "pids", "blkio", "freezer"}

func mountedWritable(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }

func newCgroupManager(version int, name string, paths map[string]string) (cgroupManager, error) {
	config := &cgroups.Cgroup{Name: name, Resources: &cgroups.Resources{SkipDevices: true}}
	switch version {
	case 2:
		m, err := fs2.NewManager(config, paths[""])
		return &unified{m, paths[""], name}, err
	case 1:
		return fs.NewManager(config, paths)
	}
	return nil, fmt.Errorf("cgroups of version %d", version)
}

func (c *cgroup) warn(err error) {
	if c.r.Warn != nil && len(c.controllers) == 0 {
		c.r.Warn(fmt.Sprintf("the cgroup %s is not in force: %v", c.r.Spec.Linux.CgroupsPath, err))
	} else if c.r.Warn != nil {
		c.r.Warn(fmt.Sprintf("limits of %s are not in force: %v", limited(c.controllers), err))
	}
}

// limited names what controllers limit, as in "memory, cpu and processes".
func limited(controllers []string) string {
	words := map[string]string{"memory": "memory", "cpu": "cpu", "cpuset": "cpu sets", "pids": "processes", "blkio": "block devices"}
	var names []string
	for _, c := range controllers {
		names = append(names, words[c])
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// limits translates those that were asked for, and names their controllers.
func limits(r *specs.LinuxResources) (*cgroups.Resources, []string) {
	out := &cgroups.Resources{SkipDevices: true}
	if r == nil {
		return out, nil
	}
	var controllers []string
	use := func(name string, set bool) {
		if set {
			controllers = append(controllers, name)
		}
	}
	if m := r.Memory; m != nil {
		out.Memory, out.MemoryReservation, out.MemorySwap = value(m.Limit), value(m.Reservation), value(m.Swap)
		out.MemorySwappiness = m.Swappiness
		if m.DisableOOMKiller != nil {
			out.OomKillDisable = *m.DisableOOMKiller
		}
		use("memory", out.Memory != 0 || out.MemoryReservation != 0 || out.MemorySwap != 0 || m.Swappiness != nil)
	}
	if p := r.CPU; p != nil {
		setShares(out, value(p.Shares))
		out.CpuQuota, out.CpuPeriod = value(p.Quota), value(p.Period)
		out.CpuRtRuntime, out.CpuRtPeriod = value(p.RealtimeRuntime), value(p.RealtimePeriod)
		out.CpusetCpus, out.CpusetMems = p.Cpus, p.Mems
		use("cpu", out.CpuShares != 0 || out.CpuQuota != 0 || out.CpuPeriod != 0 || out.CpuRtRuntime != 0)
		use("cpuset", p.Cpus != "" || p.Mems != "")
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		out.PidsLimit = r.Pids.Limit
		use("pids", true)
	}
	if b := r.BlockIO; b != nil && b.Weight != nil && *b.Weight != 0 {
		out.BlkioWeight = *b.Weight
		use("blkio", true)
	}
	return out, controllers
}

func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

// enter puts the payload in, before it does anything of its own.
func (c *cgroup) enter(pid int) {
	err := c.m.Apply(pid)
	c.refused.Store(err != nil)
	if err == nil {
		err = setAll(c.m, c.rs, func(err error) {
			if c.r.Warn != nil {
				c.r.Warn(fmt.Sprintf("the weight of block devices is not in force: %v", err))
			}
		})
	}
	if err != nil {
		c.warn(err)
	}
}

// setAll puts rs in force. That a kernel knows no weights of block devices must not cost the other limits.
func setAll(m cgroupManager, rs *cgroups.Resources, weightless func(error)) error {
	others := *rs
	others.BlkioWeight = 0
	if err := m.Set(&others); err != nil || rs.BlkioWeight == 0 {
		return err
	}
	if err := m.Set(&cgroups.Resources{SkipDevices: true, BlkioWeight: rs.BlkioWeight}); err != nil {
		weightless(err)
	}
	return nil
}

// joining is what puts one more process in; nil where there is no cgroup to be in.
func (c *cgroup) joining() func(pid int) {
	if c == nil || c.refused.Load() {
		return nil
	}
	return c.join
}

// join puts one more process in.
func (c *cgroup) join(pid int) {
	for _, dir := range c.m.GetPaths() {
		if err := cgroups.WriteCgroupProc(dir, pid); err != nil {
			c.warn(err)
			return
		}
	}
}

// oomKilled reports whether the kernel killed for want of memory.
func (c *cgroup) oomKilled() bool {
	if c == nil {
		return false
	}
	n, err := c.m.OOMKillCount()
	return err == nil && n > 0
}

func (c *cgroup) remove() {
	if c == nil {
		return
	}
	if err := c.m.Destroy(); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.warn(fmt.Errorf("remove cgroup: %w", err))
	}
	for _, parent := range c.parents {
		_ = os.Remove(parent) // unless others are in there
	}
}
