package sentry

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// noCollection is the environment of den's children: until pace is called they keep nearly all that they
// allocate, so that to collect garbage meanwhile is in vain. Their packages alone allocate enough for a
// collection, before Main could turn it off.
const noCollection = "GOGC=off"

// A small heap may then grow more than usual before the next collection, and a large one as usual.
const (
	smallPercent   = 400
	largePercent   = 100 // Go's default
	smallHeapBytes = 24 << 20
)

// A pacer sets the collector's pace after each collection, until the process ends.
type pacer struct {
	percent int
	live    []metrics.Sample
}

// pace begins with the pace of a small heap.
func pace() {
	p := &pacer{live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}}
	p.set(smallPercent)
	p.next()
}

func (p *pacer) set(percent int) {
	if p.percent != percent {
		p.percent = percent
		debug.SetGCPercent(percent)
	}
}

// next waits for the end of the next collection: an object dies in it.
func (p *pacer) next() {
	runtime.SetFinalizer(&struct{ *pacer }{p}, func(*struct{ *pacer }) {
		metrics.Read(p.live)
		p.set(pacePercent(p.live[0].Value.Uint64()))
		p.next()
	})
}

// pacePercent is how much a heap may grow of which so many bytes are in use.
func pacePercent(liveBytes uint64) int {
	if liveBytes < smallHeapBytes {
		return smallPercent
	}
	return largePercent
}
