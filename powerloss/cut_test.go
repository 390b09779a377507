package powerloss

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// A cut is a moment at which the power goes: all that was written before the
// log's entry flush is on the disk, and of the writes between flush and end,
// which a volatile cache held, each block with probability keep.
type cut struct {
	flush, end int
	keep       float64
	seed       uint64
}

func (c cut) String() string {
	if c.end == c.flush {
		return fmt.Sprintf("at flush %d", c.flush)
	}
	return fmt.Sprintf("at %d after flush %d, keeping %.0f%% (seed %d)", c.end, c.flush, 100*c.keep, c.seed)
}

// cuts lists cut points of a log: each flush, and between before each of them.
// Of all those it takes at most n, spread evenly.
func cuts(log []entry, n, between int, r *rand.Rand) []cut {
	var all []cut
	last := -1
	for i, e := range log {
		if !e.flush {
			continue
		}
		all = append(all, cut{flush: i, end: i})
		for range between {
			if last < 0 || i-last < 2 {
				break
			}
			keep := []float64{0, 0.1, 0.5, 0.9, 1}[r.IntN(5)]
			all = append(all, cut{flush: last, end: last + 1 + r.IntN(i-last), keep: keep, seed: r.Uint64()})
		}
		last = i
	}
	if len(all) > n {
		picked := make([]cut, n)
		for i := range picked {
			lo, hi := i*len(all)/n, (i+1)*len(all)/n
			picked[i] = all[lo+r.IntN(hi-lo)]
		}
		all = picked
	}
	slices.SortStableFunc(all, func(a, b cut) int { return a.flush - b.flush })
	return all
}

// A replay builds the images of cuts, whose flushes must not decrease.
type replay struct {
	log  []entry
	img  image // everything before log[done]
	done int
}

func newReplay(begin image, log []entry) *replay { return &replay{log: log, img: slices.Clone(begin)} }

func (p *replay) at(c cut) image {
	for ; p.done < c.flush; p.done++ {
		e := p.log[p.done]
		p.img.writeAt(e.data, e.off)
	}
	img := slices.Clone(p.img)
	r := rand.New(rand.NewPCG(c.seed, 0))
	for _, e := range p.log[c.flush:c.end] {
		for off, rest := e.off, e.data; len(rest) > 0; {
			n := min(len(rest), blockSize-int(off%blockSize))
			if r.Float64() < c.keep {
				img.writeAt(rest[:n], off)
			}
			off, rest = off+int64(n), rest[n:]
		}
	}
	return img
}
