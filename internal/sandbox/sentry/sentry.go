// Package sentry runs sandboxes in gVisor's sentry: a kernel in user space,
// linked into den, for outer containers that allow no namespaces and no mounts.
//
// Each sandbox is a process of den's own binary (Main), which filters its own
// system calls before it looks at anything of the payload, and a gofer beside
// it where directories of the outer container are bound. Nothing of it needs a
// namespace, a mount, a capability or a setuid helper. Rules:
//
//   - What a payload changes exists only in its sentry: when it has ended, the changes come
//     out as a layer and are written to Root.Upper; a sandbox that is
//     cancelled leaves none.
//   - Every process of a sandbox has a holder above it (see child) that ends them when den is
//     gone and reaps what they leave, so that den never reaps a stranger.
//   - The leases of a request are sent to the sentry, which keeps them until it ends.
//
// docs/design/sentry.md describes it.
package sentry

import (
	"context"
	"errors"
	"fmt"

	"den/internal/sandbox"
)

// Options of the executor.
type Options struct {
	// Name is the rung's, for messages.
	Name string
	// Platform is what Try found; empty lets New find out.
	Platform string
	// Spare is a sentry for the first sandbox, or nil. From New on it is the executor's.
	Spare *Spare
}

// Executor runs sandboxes in sentries. It may be used by several goroutines.
type Executor struct {
	o       Options
	pool    pool
	filters payloadFilters
}

// New returns the executor.
func New(o Options) (*Executor, error) {
	if o.Platform == "" {
		p, err := Try(context.Background())
		if err != nil {
			o.Spare.End()
			return nil, fmt.Errorf("sentry: %w", err)
		}
		o.Platform = p
	}
	if o.Name == "" {
		o.Name = "sentry"
	}
	e := &Executor{o: o, pool: pool{platform: o.Platform}}
	e.pool.adopt(o.Spare)
	return e, nil
}

// Name is the rung's.
func (e *Executor) Name() string { return e.o.Name }

// Platform is what runs the payload's code: systrap or ptrace.
func (e *Executor) Platform() string { return e.o.Platform }

// Close ends what waits for another request. Sandboxes that run go on.
func (e *Executor) Close() {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	e.pool.closed = true
	e.pool.drop()
}

// Expect implements sandbox.Expecter for the first request: those that follow find a sentry that waits.
func (e *Executor) Expect(_ context.Context, network string) { e.pool.expect(network) }

// OwnKernel says that sandboxes do not run on the kernel of the outer container.
func (e *Executor) OwnKernel() bool { return true }

// Start runs r. A lower directory of the root that is a regular file is a layer in image form;
// Root.Upper is where the changes are written when the payload has ended, as a tree in image form,
// or as a directory if it is one.
func (e *Executor) Start(ctx context.Context, r *sandbox.Request) (sandbox.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := sandbox.CheckText(r); err != nil {
		return nil, err
	}
	if c := *r; len(r.Interfaces) > 0 {
		c.Network = sandbox.NetworkNone // a stack of its own
		r = &c
	} else if r.Network == "" {
		c.Network = sandbox.NetworkHost
		r = &c
	}
	s := &running{id: r.ID, root: r.Root, done: make(chan struct{})}
	if err := e.start(ctx, r, s); err != nil {
		s.abandon()
		var exec *sandbox.ExecError
		if errors.As(err, &exec) || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, err
		}
		return nil, fmt.Errorf("sandbox %s: %w", r.ID, err)
	}
	s.run()
	return s, nil
}
