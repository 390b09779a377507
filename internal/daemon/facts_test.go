package daemon

import (
	"strings"
	"testing"

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
		if got := f.limits(); got != (limiting{c.cgroup, c.own}) {
			t.Errorf("%s, %q: %+v", c.rung, c.err, got)
		}
		warnings := strings.Join(f.warnings(), "\n")
		if !strings.Contains(warnings, c.warns) || (c.warns == "") != (warnings == "") {
			t.Errorf("%s, %q: %s", c.rung, c.err, warnings)
		}
	}
}
