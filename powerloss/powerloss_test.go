package powerloss

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/durable"
)

// A flush of the loop device reaches the disk's log, after the writes that it
// covers; the rest of this proof stands on that.
func TestFlushReachesTheLog(t *testing.T) {
	need(t)
	d := newDisk(make(image, 256))
	loop := newFarm(t).attach(t, d)
	for i := range 3 {
		block := make([]byte, blockSize)
		block[0] = byte(i + 1)
		_, err := loop.WriteAt(block, int64(i)*blockSize)
		must(t, err)
		must(t, loop.Sync())
		log := d.recorded()
		covered := slices.ContainsFunc(log, func(e entry) bool {
			return !e.flush && e.off <= int64(i)*blockSize && e.off+int64(len(e.data)) > int64(i)*blockSize
		})
		if !covered || !log[len(log)-1].flush {
			t.Fatalf("after write %d: %d entries, covered %v", i, len(log), covered)
		}
	}
	if info, err := unix.IoctlLoopGetStatus64(int(loop.Fd())); err != nil || info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		t.Errorf("the loop device does not write directly (%v)", err)
	}
	must(t, loop.Close())
	<-d.closed
}

// The power goes at any moment: what is there afterwards is whole, and what
// was promised is there.
func TestNothingTornAfterAPowerCut(t *testing.T) {
	for _, k := range fileSystems {
		for _, mode := range []durable.Mode{durable.Epoch, durable.Strict} {
			t.Run(k.name+"/"+string(mode), func(t *testing.T) {
				t.Parallel()
				g := newRig(t, k, mode, os.Getenv("DEN_STORE_BROKEN"))
				g.mustSurvive(g.use())
			})
		}
	}
}

// mustSurvive tries the cuts of a log, and of every fourth also a second power
// cut, during the recovery from the first.
func (g *rig) mustSurvive(log []entry) {
	t := g.t
	replay, x := newReplay(g.begin, log), newExpectations(g.mode == durable.Strict)
	var tried, again, read, wanted, refused int
	for i, c := range cuts(log, *maxCuts, *between, g.r) {
		img := replay.at(c)
		x.upTo(log, c.end)
		want := x.want(false)
		found, second := g.after(img, want)
		if found.Unmountable {
			// Of what a volatile cache kept by chance xfs refuses a log now and then, whatever den wrote.
			refused++
			if c.end == c.flush {
				t.Fatalf("%s: all that was flushed is there, and it does not mount", c)
			}
			continue
		}
		tried, read, wanted = tried+1, read+found.Read, wanted+len(want.Objects)+len(want.Refs)
		for _, f := range found.Findings {
			t.Errorf("%s: %s", c, f)
		}
		if i%4 == 0 && len(found.Findings) == 0 {
			again++
			recut := cuts(second, 1, *between, g.r)
			if len(recut) == 0 {
				continue
			}
			found, _ := g.after(newReplay(img, second).at(recut[0]), x.want(true))
			if found.Unmountable {
				refused++
			}
			for _, f := range found.Findings {
				t.Errorf("%s, and then %s: %s", c, recut[0], f)
			}
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d cuts of %d flushes, %d of them again while recovering: %d objects served, %d wanted",
		tried, flushes(log), again, read, wanted)
	if refused > 1+tried/100 {
		t.Errorf("%d cuts left what %s does not mount", refused, g.kind.name)
	}
	if read == 0 || wanted == 0 {
		t.Error("nothing was there to serve: this shows nothing")
	}
}

func flushes(log []entry) (n int) {
	for _, e := range log {
		if e.flush {
			n++
		}
	}
	return n
}
