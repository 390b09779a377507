package main

import (
	"github.com/spf13/pflag"
)

// dockerLimits are flags of docker run that only a daemon has, in its own words.
type dockerLimits struct {
	cpuPeriod, cpuQuota, rtPeriod, rtRuntime, swappiness int64
	oomScore                                             int
	cgroupParent, runtime, isolation                     string
	deviceRules, storageOpts                             []string
	oomKillDisable                                       bool
}

func (l *dockerLimits) bind(f *pflag.FlagSet) {
	f.Int64Var(&l.swappiness, "memory-swappiness", -1, "Tune container memory swappiness (0 to 100)")
	f.BoolVar(&l.oomKillDisable, "oom-kill-disable", false, "Disable OOM Killer")
	f.IntVar(&l.oomScore, "oom-score-adj", 0, "Tune the preferences of the kernel's OOM killer (-1000 to 1000)")
	f.Int64Var(&l.cpuPeriod, "cpu-period", 0, "Period of the CPU quota, in microseconds")
	f.Int64Var(&l.cpuQuota, "cpu-quota", 0, "CPU time in each period, in microseconds")
	f.Int64Var(&l.rtPeriod, "cpu-rt-period", 0, "Period of real-time scheduling, in microseconds")
	f.Int64Var(&l.rtRuntime, "cpu-rt-runtime", 0, "Real-time scheduling in each period, in microseconds")
	f.StringVar(&l.cgroupParent, "cgroup-parent", "", "Parent cgroup of the container")
	f.StringVar(&l.runtime, "runtime", "", "Runtime to use")
	f.StringVar(&l.isolation, "isolation", "", "Isolation technology")
	f.StringArrayVar(&l.deviceRules, "device-cgroup-rule", nil, "Add a rule to the cgroup allowed devices list")
	f.StringArrayVar(&l.storageOpts, "storage-opt", nil, "Storage driver options")
}

// apply puts them into a HostConfig.
func (l *dockerLimits) apply(h map[string]any) {
	for field, value := range map[string]any{
		"OomScoreAdj": l.oomScore, "CpuPeriod": l.cpuPeriod, "CpuQuota": l.cpuQuota, "CpuRealtimePeriod": l.rtPeriod, "CpuRealtimeRuntime": l.rtRuntime,
		"CgroupParent": l.cgroupParent, "Runtime": l.runtime, "Isolation": l.isolation, "DeviceCgroupRules": l.deviceRules, "StorageOpt": keyValues(l.storageOpts),
	} {
		h[field] = value
	}
	if l.swappiness != -1 {
		h["MemorySwappiness"] = l.swappiness
	}
	if l.oomKillDisable {
		h["OomKillDisable"] = true
	}
}
