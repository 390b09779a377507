package ops

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/progress"
)

// httpBody reads a response, watches that it goes on, and reports how far it is.
type httpBody struct {
	io.Reader
	body  io.Closer
	stall *stall
	fetch *httpFetch
}

func (b *httpBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.stall.alive()
	b.fetch.moved(b.fetch.current + int64(n))
	if err != nil && err != io.EOF {
		if cause := b.stall.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *httpBody) Close() error {
	b.stall.stop()
	return b.body.Close()
}

// showEvery bounds how often progress is reported.
const showEvery = 100 * time.Millisecond

// moved reports that n bytes are there.
func (f *httpFetch) moved(n int64) {
	f.current = n
	if now := time.Now(); now.Sub(f.shown) >= showEvery {
		f.shown = now
		f.show(now, nil)
	}
}

func (f *httpFetch) end() {
	now := time.Now()
	f.show(now, &now)
}

func (f *httpFetch) show(now time.Time, completed *time.Time) {
	started := f.started
	f.sink.Event(progress.Event{Status: &progress.Status{
		ID: "download " + f.op.v.Digest.String(), Vertex: f.op.v.Digest, Name: "downloading " + redact(f.op.attrs.url),
		Current: f.current, Total: max(f.total, 0), Timestamp: now, Started: &started, Completed: completed,
	}})
}

// A stall cancels a context when nothing happens for a while.
type stall struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	limit   time.Duration
	stopped atomic.Bool
}

func newStall(ctx context.Context, limit time.Duration) (context.Context, *stall) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stall{ctx: ctx, cancel: cancel, limit: limit}
	s.timer = time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("server says nothing for %s: %w", limit, errdefs.ErrUnavailable))
	})
	return ctx, s
}

func (s *stall) alive() {
	if !s.stopped.Load() {
		s.timer.Reset(s.limit)
	}
}

func (s *stall) cause() error { return context.Cause(s.ctx) }

func (s *stall) stop() {
	s.stopped.Store(true)
	s.timer.Stop()
	s.cancel(context.Canceled)
}
