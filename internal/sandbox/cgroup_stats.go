package sandbox

import (
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
)

// unlimited is more than any limit that somebody sets: version 1 says "none" by a large number.
const unlimited = 1 << 60

// freeze reports whether the cgroup could be brought to the state.
func (c *cgroup) freeze(to cgroups.FreezerState) bool {
	return c != nil && c.m.Freeze(to) == nil
}

// thawForKill lets a frozen payload take a SIGKILL, which version 1's freezer keeps from it.
func (c *cgroup) thawForKill() {
	if c == nil {
		return
	}
	if state, err := c.m.GetFreezerState(); err == nil && state == cgroups.Frozen {
		c.freeze(cgroups.Thawed)
	}
}

// addTo puts what the cgroup knows in the place of sums over processes.
func (c *cgroup) addTo(st *Stats) {
	if c == nil {
		return
	}
	cs, err := c.m.GetStats()
	if err != nil || cs == nil {
		return
	}
	if u := cs.CpuStats.CpuUsage; u.TotalUsage > 0 {
		st.CPUTotal, st.CPUUser, st.CPUSystem = time.Duration(u.TotalUsage), time.Duration(u.UsageInUsermode), time.Duration(u.UsageInKernelmode)
	}
	t := cs.CpuStats.ThrottlingData
	st.Periods, st.ThrottledPeriods, st.Throttled = t.Periods, t.ThrottledPeriods, time.Duration(t.ThrottledTime)
	// What was used before a sandbox got a cgroup counts elsewhere.
	st.MemoryLimitBytes, st.PidsLimit = limitOrNone(cs.MemoryStats.Usage.Limit), limitOrNone(cs.PidsStats.Limit)
	if m := cs.MemoryStats; m.Usage.Usage > 0 {
		st.MemoryBytes, st.MemoryPeakBytes = m.Usage.Usage, m.Usage.MaxUsage
		st.MemoryCacheBytes = m.Stats["total_inactive_file"] // version 1
		if v, ok := m.Stats["inactive_file"]; ok && st.MemoryCacheBytes == 0 {
			st.MemoryCacheBytes = v
		}
	}
	if p := cs.PidsStats; p.Current > 0 {
		st.Pids = p.Current
	}
	var read, written uint64
	for _, e := range cs.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			read += e.Value
		case "write":
			written += e.Value
		}
	}
	if read+written > 0 {
		st.ReadBytes, st.WriteBytes = read, written
	}
}

func limitOrNone(n uint64) uint64 {
	if n >= unlimited {
		return 0
	}
	return n
}
