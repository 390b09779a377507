//go:build stress

package powerloss

import (
	"flag"
	"testing"

	"den/internal/durable"
)

var all = flag.Bool("all", false, "break each step on each file system")

// Each step of the protocol is needed: without it, one of the cuts shows it.
// So the test above would find a protocol that is broken.
func TestEveryStepIsNeeded(t *testing.T) {
	for _, x := range []struct {
		step string
		mode durable.Mode
	}{
		{"norecovery", durable.Epoch}, // nobody looks at the suspects
		{"nomark", durable.Epoch},     // nothing is a suspect
		{"nosync", durable.Epoch},     // epochs end without a sync
		{"nosync", durable.Strict},    // publications happen without a sync
	} {
		for i, k := range fileSystems {
			if !*all && (i+len(x.step))%len(fileSystems) != 0 {
				continue
			}
			t.Run(x.step+"/"+k.name+"/"+string(x.mode), func(t *testing.T) {
				t.Parallel()
				g := newRig(t, k, x.mode, x.step)
				g.mustFail(g.use())
			})
		}
	}
}

// mustFail tries cuts of a log until one leaves something torn or lost.
func (g *rig) mustFail(log []entry) {
	t := g.t
	replay, x := newReplay(g.begin, log), newExpectations(g.mode == durable.Strict)
	all := cuts(log, 4**maxCuts, *between, g.r)
	for i, c := range all {
		img := replay.at(c)
		x.upTo(log, c.end)
		found, _ := g.after(img, x.want(false))
		if found.Unmountable {
			continue
		}
		if len(found.Findings) > 0 {
			t.Logf("cut %d, %s: %s", i+1, c, found.Findings[0])
			return
		}
	}
	t.Errorf("%d cuts of %d flushes did not show it", len(all), flushes(log))
}
