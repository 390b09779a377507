package engine

import (
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"den/internal/sandbox"
)

// A hangup is where a program's terminal is shown. When nobody takes its output
// any more it drops the rest, so that the program is never held up by a terminal
// that nobody reads, and says so once.
type hangup struct {
	out  io.Writer
	gone chan struct{}
	once sync.Once
}

func newHangup(out io.Writer) *hangup { return &hangup{out: out, gone: make(chan struct{})} }

// Write never fails. It is called by one goroutine.
func (h *hangup) Write(p []byte) (int, error) {
	select {
	case <-h.gone:
		return len(p), nil
	default:
	}
	if h.out == nil {
		return len(p), nil
	}
	if _, err := h.out.Write(p); err != nil {
		h.once.Do(func() { close(h.gone) })
	}
	return len(p), nil
}

// hangUp does to the program what a terminal does that goes away, and kills it
// if it stays all the same.
func (c *container) hangUp(sb sandbox.Sandbox, gone, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-gone:
	}
	// It may have ended already, which is no news.
	_ = sb.Signal(unix.SIGHUP)
	patience := time.NewTimer(c.record.patience())
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		_ = sb.Signal(unix.SIGKILL)
	}
}
