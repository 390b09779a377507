package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// A watch cancels a request whose connection shows no sign of life. It runs
// while the network is waited for, not while our own side is slow.
type watch struct {
	timer  *time.Timer
	stall  time.Duration
	cancel context.CancelCauseFunc
	why    func() error // the cancellation's cause
}

// newWatch returns a running watch and the context that it cancels.
func newWatch(ctx context.Context, stall time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{stall: stall, cancel: cancel, why: func() error { return context.Cause(ctx) }}
	w.timer = time.AfterFunc(stall, func() { cancel(&stallError{stall}) })
	return ctx, w
}

func (w *watch) start(d time.Duration) { w.timer.Reset(d) }
func (w *watch) stop()                 { w.timer.Stop() }

// end releases what the watch holds.
func (w *watch) end() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// cause is the watch's own error in place of the cancellation that it made of it.
func (w *watch) cause(err error) error {
	var stalled *stallError
	if err != nil && errors.As(w.why(), &stalled) {
		return stalled
	}
	return err
}

// sliverBytes is the least that has to arrive in the time that a connection may
// be silent: what drips a byte now and then would keep us for years.
const sliverBytes = 1 << 10

// watchedBody is a response's body. Closing it ends the watch.
type watchedBody struct {
	io.ReadCloser
	w *watch

	waited time.Duration // since the last sliver was complete
	sliver int           // of it
}

func (b *watchedBody) Read(p []byte) (int, error) {
	began := time.Now()
	b.w.start(max(b.w.stall-b.waited, 0))
	n, err := b.ReadCloser.Read(p)
	b.w.stop()
	b.waited += time.Since(began)
	if b.sliver += n; b.sliver >= sliverBytes {
		b.waited, b.sliver = 0, 0
	}
	if err == io.EOF {
		return n, err
	}
	return n, b.w.cause(err)
}

func (b *watchedBody) Close() error {
	defer b.w.end()
	return b.ReadCloser.Close()
}

// sentBody is a request's body: the watch is stopped while the source is read
// and gets patience when all is sent and the registry digests it. The transport
// may still read it when the request has failed already; stop ends that.
type sentBody struct {
	w      *watch
	length int64
	after  time.Duration // patience
	moved  func(int64)   // told how much was sent, unless nil

	mu     sync.Mutex
	src    io.ReadCloser
	sent   int64
	closed bool
}

// watchBody hands w to the request's body, and to the copies that redirects make.
func watchBody(req *http.Request, w *watch) {
	if b, ok := req.Body.(*sentBody); ok {
		b.w = w
	}
	again := req.GetBody
	if again == nil {
		return
	}
	req.GetBody = func() (io.ReadCloser, error) {
		body, err := again()
		if b, ok := body.(*sentBody); ok {
			b.w = w
		}
		return body, err
	}
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, io.ErrClosedPipe
	}
	if b.sent == b.length {
		return 0, io.EOF
	}
	b.w.stop()
	n, err := b.src.Read(p[:min(int64(len(p)), b.length-b.sent)])
	b.sent += int64(n)
	if b.moved != nil {
		b.moved(b.sent)
	}
	if b.sent == b.length {
		b.w.start(b.after)
		return n, io.EOF
	}
	b.w.start(b.w.stall)
	if err == io.EOF {
		err = fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, b.sent, b.length)
	}
	if err != nil {
		err = &sourceError{err}
	}
	return n, err
}

func (b *sentBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return b.src.Close()
}
