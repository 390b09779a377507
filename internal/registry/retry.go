package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"time"
)

const (
	defaultTries = 6
	// maxRetryAfter is how long a registry may make us wait. Who asks for
	// more gets its refusal passed on instead.
	maxRetryAfter = time.Minute
	// refusedTries is enough for a registry that is being started beside us;
	// a wrong port is told soon.
	refusedTries = 3
)

// A retrier counts the tries of one operation and waits between them.
type retrier struct {
	s       *shared
	tries   int
	retries int
}

// wait returns nil when the operation, which failed with err, is to be tried
// again, after it waited; else the error to return.
func (r *retrier) wait(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.retries++
	limit := r.tries
	if errors.Is(err, syscall.ECONNREFUSED) {
		limit = min(limit, refusedTries)
	}
	if r.retries >= limit || !temporary(err) {
		return err
	}
	pause := r.s.o.Backoff(r.retries)
	var refused *Error
	if errors.As(err, &refused) && refused.RetryAfter > 0 {
		if refused.RetryAfter > maxRetryAfter {
			return err
		}
		pause = refused.RetryAfter
	}
	if r.s.o.Sleep(ctx, pause) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// progress starts the count again.
func (r *retrier) progress() { r.retries = 0 }

// backoff doubles from 0.2 s to 10 s. The jitter keeps the jobs of one
// pipeline from coming back all at once.
func backoff(retry int) time.Duration {
	d := min(200*time.Millisecond<<min(retry-1, 10), 10*time.Second)
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
