package solver

import (
	"context"
	"sync"
)

// A flight computes one value once, for all who ask. The computation ends
// early when the last of them stops asking, and then counts as never begun;
// any other error stays.
type flight[T any] struct {
	mu   sync.Mutex
	call *call[T]
}

type call[T any] struct {
	done      chan struct{}
	val       T
	err       error
	waiters   int
	cancel    context.CancelFunc
	abandoned bool
}

func (f *flight[T]) do(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
	for {
		c := f.join(ctx, fn)
		select {
		case <-c.done:
		case <-ctx.Done():
			if f.leave(c) {
				<-c.done // somebody has to wait for the goroutine
			}
			var zero T
			return zero, context.Cause(ctx)
		}
		if !c.abandoned {
			return c.val, c.err
		}
	}
}

// join counts the caller in, and begins the computation for the first.
func (f *flight[T]) join(ctx context.Context, fn func(context.Context) (T, error)) *call[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.call == nil {
		runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c := &call[T]{done: make(chan struct{}), cancel: cancel}
		f.call = c
		go func() {
			defer cancel()
			val, err := fn(runCtx)
			f.mu.Lock()
			defer f.mu.Unlock()
			c.val, c.err = val, err
			if c.abandoned = err != nil && runCtx.Err() != nil; c.abandoned {
				f.call = nil
			}
			close(c.done)
		}()
	}
	f.call.waiters++
	return f.call
}

// leave counts the caller out and says whether it was the last.
func (f *flight[T]) leave(c *call[T]) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.waiters--
	if c.waiters > 0 {
		return false
	}
	c.cancel()
	return true
}
