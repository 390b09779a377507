package engine

import (
	"context"
	"fmt"
	"sync"
)

// reconcileNetworks makes the networks what the containers that are alive need.
func (e *Engine) reconcileNetworks(ctx context.Context, alive map[string]bool) {
	ns := e.Options.Networks
	if ns == nil {
		return
	}
	ns.Locate(e.payload)
	if err := ns.Reconcile(ctx, func(container string) bool { return alive[container] }); err != nil {
		e.Log(fmt.Errorf("networks: %w", err))
	}
}

// watchNetworks brings back what dies of networks until ctx ends; the caller then
// waits by the function returned.
func (e *Engine) watchNetworks(ctx context.Context) (wait func()) {
	var work sync.WaitGroup
	if ns := e.Options.Networks; ns != nil {
		work.Go(func() {
			ns.Watch(ctx, func(err error) { e.Log(fmt.Errorf("networks: %w", err)) })
		})
	}
	return work.Wait
}

// payload is the first process of a container that runs, 0 if it does not.
func (e *Engine) payload(container string) int {
	l, err := e.life(container)
	if err != nil || l == nil {
		return 0
	}
	r, err := l.running()
	if err != nil {
		return 0
	}
	return r.sb.Pid()
}
