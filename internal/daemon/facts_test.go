package daemon

import (
	"strings"
	"testing"

	"den/internal/engine"
	"den/internal/probe"
	"den/internal/sandbox"
)

// docker info claims no limit that is not kept, and says in words which are not.
func TestInfoSaysWhichLimitsAreKept(t *testing.T) {
	for _, c := range []struct {
		rung        sandbox.Rung
		err         string
		cgroup, own bool
		warns       string
	}{
		{sandbox.RungPrivileged, "", true, false, ""},
		{sandbox.RungPrivileged, "read-only", false, false, "not enforced: read-only"},
		{sandbox.RungUserns, "read-only", false, false, "not enforced: read-only"},
		{sandbox.RungSentry, "read-only", false, true, "--cpu-shares and limits of block devices are not enforced"},
		{sandbox.RungSentry, "", false, true, "--cpu-shares"},
		{sandbox.RungChroot, "", false, false, "no limits are enforced"},
	} {
		f := facts{runner: &Runner{Choice: sandbox.Choice{Rung: c.rung}, Facts: probe.Facts{CgroupErr: c.err}}}
		l := f.runner.limits()
		if l.cgroup != c.cgroup || l.own != c.own || (l.why == "") != c.cgroup {
			t.Errorf("%s, %q: %+v", c.rung, c.err, l)
		}
		// And says it of each container that asks.
		all := engine.Limits{MemoryBytes: 8 << 20, MemorySwapBytes: 9 << 20, CPUs: 1, CPUShares: 5, CpusetCPUs: "0", Pids: 3}
		want := []string{"memory", "swap", "processors", "the weight of processors", "cpu sets", "processes"}
		if c.own {
			want = []string{"swap", "the weight of processors"}
		}
		made, err := warnsOfLimits(&created{}, l).Create(t.Context(), &engine.CreateRequest{RunRequest: engine.RunRequest{Limits: all}})
		if said := strings.Join(made.Warnings, ""); err != nil || (said == "") != c.cgroup || !c.cgroup && !strings.HasPrefix(said, "limits of "+strings.Join(want, ", ")+" are not in force here: "+l.why) {
			t.Errorf("%s, %q: %q, %v", c.rung, c.err, said, err)
		}
		made, err = warnsOfLimits(&created{}, l).Create(t.Context(), &engine.CreateRequest{RunRequest: engine.RunRequest{Limits: engine.Limits{MemorySwapBytes: -1}}})
		if err != nil || len(made.Warnings) > 0 {
			t.Errorf("nothing is asked for, and it warns: %q, %v", made.Warnings, err)
		}
		warnings := strings.Join(f.warnings(), "\n")
		if !strings.Contains(warnings, c.warns) || (c.warns == "") != (warnings == "") {
			t.Errorf("%s, %q: %s", c.rung, c.err, warnings)
		}
	}
}

func TestWeightOfBlockDevicesIsDiscardedWithAWarningWhereTheKernelHasNone(t *testing.T) {
	for _, weight := range []bool{true, false} {
		r := &engine.CreateRequest{RunRequest: engine.RunRequest{Limits: engine.Limits{BlkioWeight: 100, MemoryReservationBytes: 8 << 20}}}
		made, err := warnsOfLimits(&created{}, limiting{cgroup: true, weight: weight}).Create(t.Context(), r)
		if err != nil || (len(made.Warnings) == 0) != weight || (r.Limits.BlkioWeight == 100) != weight || r.Limits.MemoryReservationBytes == 0 {
			t.Errorf("weight %t: %q, %+v, %v", weight, made.Warnings, r.Limits, err)
		}
	}
}
