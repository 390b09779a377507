package sentry

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBoundsOfTheOuterContainerAreAppliedAndExplained(t *testing.T) {
	b := bounds{outerPids: 512, processes: 100, memoryBytes: 1 << 30}
	for _, c := range []struct{ asked, want int64 }{{0, 1 << 30}, {2 << 30, 1 << 30}, {1 << 20, 1 << 20}} {
		r := request{limitSizes: limitSizes{MaxMemoryBytes: c.asked}}
		b.apply(&r)
		if r.MaxMemoryBytes != c.want || r.MaxProcesses != 100 {
			t.Errorf("asked for %d: %+v", c.asked, r)
		}
		if own := c.asked == c.want; (b.explain(killMemory) == "") != own {
			t.Errorf("asked for %d: %q", c.asked, b.explain(killMemory))
		}
	}
	if why := b.explain(killProcesses); !strings.Contains(why, "--pids-limit") {
		t.Error(why)
	}
	for asked, want := range map[int64]string{0: "1024 MiB, which is what the outer container's limit", 2 << 30: "docker run --memory", 5 << 20: "far more than 5 MiB of memory at once"} {
		b.asked = asked
		if why := b.tooGreedy(); !strings.Contains(why, want) || !strings.Contains(why, "of memory") {
			t.Errorf("asked for %d: %q", asked, why)
		}
	}
	if why := b.explain(""); why != "" {
		t.Error(why)
	}
	for words, want := range map[string]string{
		"panic: resource temporarily unavailable": "512", "": "memory", "panic: nil": "",
	} {
		if got := b.advise(unix.WaitStatus(unix.SIGKILL), words); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%q: %q", words, got)
		}
	}
}
