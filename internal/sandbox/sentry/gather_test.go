package sentry

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a sentry does is told by letters, one a look, with what is decided then in the second line: g is to gather.
//
//	i idle, s serial, w serial while threads wait, p would run on two, o disturbed by others
func TestGatheringFollowsWhatIsRun(t *testing.T) {
	type use struct{ ran, waited float64 }
	// By whether they are gathered: p runs on one processor then, and waits for it.
	uses := map[rune][2]use{
		'i': {{0.05, 0}, {0.05, 0}}, 's': {{1, 0.2}, {1, 0.2}}, 'w': {{1.05, 0.9}, {1, 1.3}}, 'p': {{1.9, 0.1}, {1, 1}}, 'o': {{0.5, 0.6}, {0.5, 0.6}},
	}
	for name, c := range map[string]struct{ does, want string }{
		"serial work is gathered at the first look":          {"sssss", "ggggg"},
		"what does nothing is left alone":                    {"iiiii", "-----"},
		"parallel work never is":                             {"ppppp", "-----"},
		"work that becomes parallel is spread":               {"sspppppp", "gg------"},
		"when it becomes serial it is, after a while":        {"ppsssss", "----ggg"},
		"a try that finds nothing is made later and later":   {strings.Repeat("w", 34), "gg-ggg-ggggg-ggggggggg-ggggggggggg"},
		"who is disturbed twice is left to the kernel":       {"sooooss", "gg-----"},
		"disturbed again, for twice as long":                 {"soo" + strings.Repeat("s", 9) + "oo" + strings.Repeat("s", 18), "gg---------gg-----------------gg"},
		"one disturbance is none":                            {"sososos", "ggggggg"},
		"one that does nothing meanwhile stays where it was": {"ssiiiss", "ggggggg"},
	} {
		var g gathering
		now := time.Unix(1_800_000_000, 0)
		var got strings.Builder
		for _, what := range c.does {
			u, tick := uses[what][0], gatherTick
			if g.on {
				u, tick = uses[what][1], gatheredTick
			}
			now = now.Add(tick)
			if g.look(now, u.ran, u.waited) {
				got.WriteByte('g')
			} else {
				got.WriteByte('-')
			}
		}
		if got.String() != c.want {
			t.Errorf("%s: %s is decided as\n%s, want\n%s", name, c.does, &got, c.want)
		}
	}
}

// A sentry has the slack from its first instruction: of its threads each has that of who started it.
func TestTimersOfASentryHaveSlack(t *testing.T) {
	c, err := spawn(goferName)
	if err != nil {
		t.Fatal(err)
	}
	defer c.end()
	own, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.TrimSpace(string(own))
	if gathers() {
		want = fmt.Sprint(timerSlack.Nanoseconds())
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // it is on its way
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", c.pid))
		if errors.Is(err, unix.EPERM) {
			t.Skip("needs CAP_SYS_NICE")
		}
		if got := strings.TrimSpace(string(b)); err == nil && got == want {
			return
		} else if time.Now().After(end) {
			t.Fatalf("the slack is %q ns, %v; want %s", got, err, want)
		}
	}
}
