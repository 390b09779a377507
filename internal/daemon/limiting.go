package daemon

import (
	"context"
	"strings"

	"den/internal/dockerapi"
	"den/internal/engine"
	"den/internal/sandbox"
)

// limiting says who keeps containers to their limits: a cgroup all of them, the sentry itself those of memory,
// processors and processes. why is the reason where there is no cgroup.
type limiting struct {
	cgroup, own bool
	why         string
	// weight says that the kernel keeps weights of block devices.
	weight bool
}

// limits are those of the rung.
func (r *Runner) limits() limiting {
	switch r.Choice.Rung {
	case sandbox.RungSentry:
		return limiting{own: true, why: "the sentry's sandboxes have no cgroup"}
	case sandbox.RungChroot:
		return limiting{why: "the rung chroot has no cgroups"}
	}
	return limiting{cgroup: r.Facts.CgroupErr == "", why: r.Facts.CgroupErr, weight: r.Facts.BlockWeight}
}

// unkept names the limits in l that nobody keeps.
func (k limiting) unkept(l engine.Limits) []string {
	if k.cgroup {
		return nil
	}
	var names []string
	for _, x := range []struct {
		asked, own bool
		name       string
	}{
		{l.MemoryBytes > 0, k.own, "memory"},
		{l.MemorySwapBytes > 0 && l.MemorySwapBytes != l.MemoryBytes && l.MemorySwapBytes != 2*l.MemoryBytes, false, "swap"}, // twice the memory is docker's default
		{l.CPUs > 0, k.own, "processors"},
		{l.CPUShares > 0, false, "the weight of processors"},
		{l.CpusetCPUs != "", k.own, "cpu sets"},
		{l.Pids > 0, k.own, "processes"},
		{l.MemoryReservationBytes > 0, false, "memory reservations"},
		{l.BlkioWeight > 0, false, "the weight of block devices"},
		{l.CpusetMems != "", false, "memory nodes"},
	} {
		if x.asked && !x.own {
			names = append(names, x.name)
		}
	}
	return names
}

// warnsOfLimits is an engine that tells who makes a container which of its limits will not be kept, as dockerd does.
func warnsOfLimits(e dockerapi.Engine, k limiting) dockerapi.Engine {
	if k.cgroup && k.weight {
		return e
	}
	return &warning{e, k}
}

type warning struct {
	dockerapi.Engine
	limits limiting
}

// Create adds the warning.
func (w *warning) Create(ctx context.Context, r *engine.CreateRequest) (engine.Created, error) {
	weighs := w.limits.cgroup && r.Limits.BlkioWeight > 0
	if weighs {
		r.Limits.BlkioWeight = 0
	}
	made, err := w.Engine.Create(ctx, r)
	if weighs && err == nil {
		made.Warnings = append(made.Warnings, "this kernel keeps no weights of block devices (it has neither the scheduler BFQ nor io.cost): --blkio-weight is discarded")
	}
	if names := w.limits.unkept(r.Limits); err == nil && len(names) > 0 {
		made.Warnings = append(made.Warnings, "limits of "+strings.Join(names, ", ")+" are not in force here: "+w.limits.why)
	}
	return made, err
}
