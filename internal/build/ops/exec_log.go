package ops

import (
	"fmt"
	"sync"
	"time"

	"den/internal/oci"
	"den/internal/progress"
)

// Limits on the output of one stream of a step, which are BuildKit's: what is
// above them is left out, but the end of it is kept for the case of failure.
const (
	maxLogBytes     = 2 << 20
	maxLogPerSecond = 200 << 10
	logTailBytes    = 256 << 10
)

// A stepLog turns a stream of a step's output into log events. Its memory is
// bounded however much is written.
type stepLog struct {
	sink   progress.Sink
	vertex oci.Digest
	stream int
	now    func() time.Time

	mu       sync.Mutex
	started  time.Time
	size     int64 // of all that was written
	clipping bool
	tail     []byte // ring of what was written since the first clipping
	tailEnd  int
	tailFull bool
}

func newStepLog(sink progress.Sink, vertex oci.Digest, stream int) *stepLog {
	return &stepLog{sink: sink, vertex: vertex, stream: stream, now: time.Now, started: time.Now()}
}

// Write never fails: a step does not end because nobody reads its output.
func (l *stepLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit, name := l.limit()
	pass := max(0, min(int64(len(p)), limit-l.size))
	l.size += int64(len(p))
	if pass < int64(len(p)) || l.tail != nil {
		l.keep(p)
	}
	show := append([]byte(nil), p[:pass]...)
	switch clipped := pass < int64(len(p)); {
	case clipped && !l.clipping:
		show = fmt.Appendf(show, "\n[output clipped, log limit %s reached]\n", name)
		l.clipping = true
	case !clipped:
		l.clipping = false
	}
	l.emit(show)
	return len(p), nil
}

// limit is how much may have been written by now, and that limit's name.
func (l *stepLog) limit() (int64, string) {
	seconds := int64(l.now().Sub(l.started)/time.Second) + 1
	if seconds < maxLogBytes/maxLogPerSecond+1 {
		return seconds * maxLogPerSecond, "200KiB/s"
	}
	return maxLogBytes, "2MiB"
}

// keep writes p to the ring of the last logTailBytes.
func (l *stepLog) keep(p []byte) {
	if l.tail == nil {
		l.tail = make([]byte, logTailBytes)
	}
	if len(p) >= logTailBytes {
		copy(l.tail, p[len(p)-logTailBytes:])
		l.tailEnd, l.tailFull = 0, true
		return
	}
	n := copy(l.tail[l.tailEnd:], p)
	if n < len(p) || l.tailEnd+n == logTailBytes {
		l.tailFull = true
	}
	copy(l.tail, p[n:])
	l.tailEnd = (l.tailEnd + len(p)) % logTailBytes
}

// flushTail shows the end of what was clipped: a failed step's last words.
func (l *stepLog) flushTail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tail == nil {
		return
	}
	var out []byte
	if l.tailFull {
		out = append(out, l.tail[l.tailEnd:]...)
	}
	l.emit(append(out, l.tail[:l.tailEnd]...))
	l.tail = nil
}

func (l *stepLog) emit(p []byte) {
	if len(p) > 0 {
		l.sink.Event(progress.Event{Log: &progress.Log{Vertex: l.vertex, Stream: l.stream, Data: p, Timestamp: l.now()}})
	}
}
