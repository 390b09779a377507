package dockerapi

import (
	"io"
	"sync"
	"time"
)

const (
	// batchBytes is how much a batch holds before it is sent.
	batchBytes = 64 << 10
	// batchDelay is how long a line may wait for others: nobody sees it, and it makes
	// one packet of what would be a thousand.
	batchDelay = 2 * time.Millisecond
)

// A batch gathers many small writes into few large ones. Close sends the rest.
type batch struct {
	w     io.Writer
	mu    sync.Mutex
	buf   []byte
	timer *time.Timer
	err   error // the first failure of w, which ends all further writing
}

func newBatch(w io.Writer) *batch { return &batch{w: w} }

// Write keeps p for later, or sends it along with what was kept.
func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	b.buf = append(b.buf, p...)
	if len(b.buf) >= batchBytes {
		b.send()
		return len(p), b.err
	}
	if b.timer == nil {
		b.timer = time.AfterFunc(batchDelay, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.send()
		})
	}
	return len(p), nil
}

// send writes what was kept. The caller holds mu.
func (b *batch) send() {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if len(b.buf) > 0 && b.err == nil {
		_, b.err = b.w.Write(b.buf)
	}
	b.buf = b.buf[:0]
}

// Close sends what is left. Nothing may be written afterwards.
func (b *batch) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.send()
	return b.err
}
