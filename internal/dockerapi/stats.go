package dockerapi

import (
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"den/internal/engine"
)

// statsEvery is how often docker's clients expect a line of stats.
const statsEvery = time.Second

// stats sends what a container uses: once a second with stream, else once, with the
// second before unless one-shot is asked for.
func (s *Server) stats(w http.ResponseWriter, c *call) error {
	stream := c.flagOr("stream", true)
	oneShot := c.version >= 41 && c.flag("one-shot")
	if stream && oneShot {
		return invalid("cannot have stream=true and one-shot=true")
	}
	found, err := s.Engine.Container(c.Context(), c.name)
	if err != nil {
		return err
	}
	// What a rung cannot tell is an error with a status, before the answer begins.
	now, err := s.Engine.Stats(c.Context(), found.ID)
	if err != nil {
		return err
	}
	out, err := c.flushed(w, "application/json")
	if err != nil {
		return err
	}
	lines := jsonLines(out)
	// Who wants one sample with the one before gets it a second later; a container that
	// does not run is worth no second.
	var before engine.Stats
	skip := !stream && !oneShot && !now.Read.IsZero()
	for {
		if !skip {
			if err := lines.Encode(statsOf(found, &now, &before, c.version)); err != nil || !stream {
				return err
			}
		}
		before, skip = now, false
		select {
		case <-c.Context().Done():
			return nil
		case <-time.After(statsEvery):
		}
		switch now, err = s.Engine.Stats(c.Context(), found.ID); {
		case c.Context().Err() != nil, errdefs.IsNotFound(err):
			return nil // the client is gone, or the container
		case err != nil:
			now = engine.Stats{} // it has ended meanwhile, which is no failure of the answer
		}
	}
}

// statsResponse is container.StatsResponse with what older versions had.
type statsResponse struct {
	container.StatsResponse
	Name string `json:"name"`
	ID   string `json:"id"`
}

func statsOf(c *engine.Container, now, before *engine.Stats, v version) *statsResponse {
	out := &statsResponse{Name: "/" + c.Name, ID: c.ID}
	out.Read, out.PreRead = now.Read, before.Read
	out.CPUStats, out.PreCPUStats = cpuStats(now), cpuStats(before)
	if v >= 52 {
		out.OSType = "linux"
	}
	if now.Read.IsZero() {
		return out
	}
	out.PidsStats = container.PidsStats{Current: now.Pids, Limit: now.PidsLimit}
	out.MemoryStats = container.MemoryStats{
		Usage: now.MemoryBytes, MaxUsage: now.MemoryPeakBytes, Limit: now.MemoryLimitBytes,
		// Both names: clients know cgroup v1 by the first and v2 by the second, and
		// subtract it from the usage.
		Stats: map[string]uint64{"total_inactive_file": now.MemoryCacheBytes, "inactive_file": now.MemoryCacheBytes},
	}
	if out.MemoryStats.Limit == 0 {
		out.MemoryStats.Limit = machineMemory()
	}
	out.BlkioStats.IoServiceBytesRecursive = []container.BlkioStatEntry{
		{Op: "read", Value: now.ReadBytes}, {Op: "write", Value: now.WriteBytes},
	}
	for _, i := range now.Interfaces {
		if out.Networks == nil {
			out.Networks = map[string]container.NetworkStats{}
		}
		out.Networks[i.Name] = container.NetworkStats{
			RxBytes: i.RxBytes, RxPackets: i.RxPackets, RxErrors: i.RxErrors, RxDropped: i.RxDropped,
			TxBytes: i.TxBytes, TxPackets: i.TxPackets, TxErrors: i.TxErrors, TxDropped: i.TxDropped,
		}
	}
	return out
}

func cpuStats(s *engine.Stats) container.CPUStats {
	return container.CPUStats{
		CPUUsage: container.CPUUsage{
			TotalUsage: uint64(s.CPUTotal), UsageInUsermode: uint64(s.CPUUser), UsageInKernelmode: uint64(s.CPUSystem),
		},
		SystemUsage: uint64(s.SystemCPU), OnlineCPUs: uint32(s.CPUs),
		ThrottlingData: container.ThrottlingData{
			Periods: s.Periods, ThrottledPeriods: s.ThrottledPeriods, ThrottledTime: uint64(s.Throttled),
		},
	}
}

// machineMemory is what a container without a limit may take, in bytes; 0 if nobody says.
func machineMemory() uint64 {
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) != nil {
		return 0
	}
	return i.Totalram * uint64(i.Unit)
}
