package sentry

import (
	"sync"
	"time"
)

// A pool keeps one sentry that has made itself ready and waits for a request: then a
// sandbox starts in a third of the time.
//
// What it keeps ends with Executor.Close, with den, like every child, and when it was
// not needed for idleLimit.
type pool struct {
	platform string
	filters  filters

	mu      sync.Mutex
	starts  int // of sandboxes
	spawned int // sentries
	filling bool
	closed  bool
	waiting *child
	network string
	idle    *time.Timer
}

const (
	// minStarts is how many sandboxes den has started before it expects more.
	minStarts = 2
	idleLimit = 30 * time.Second
)

// take gives a sentry for the network; warm says that it has waited.
func (p *pool) take(network string) (c *child, warm bool, err error) {
	p.mu.Lock()
	p.starts++
	if p.waiting != nil && p.network == network {
		c, p.waiting = p.waiting, nil
		p.idle.Stop()
	}
	p.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	c, err = p.spawn(network)
	return c, false, err
}

// spawn starts a sentry. While that makes itself ready, its filter is compiled, if it is the first.
func (p *pool) spawn(network string) (*child, error) {
	c, err := spawn(sentryName, p.platform, network)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.spawned++
	p.mu.Unlock()
	code, err := p.filters.of(network)
	if err != nil {
		c.end()
		return nil, err
	}
	_ = send(c.control, &command{Filter: code}, nil) // if it is gone, its user learns why
	return c, nil
}

// refill starts the next sentry, if another one is expected. That it fails is
// no news: whoever needs one starts one.
func (p *pool) refill(network string) {
	p.mu.Lock()
	enough := p.starts < minStarts || p.closed || p.filling || p.waiting != nil && p.network == network
	p.filling = p.filling || !enough
	p.mu.Unlock()
	if enough {
		return
	}
	c, err := p.spawn(network)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filling = false
	switch {
	case err != nil:
		return
	case p.closed:
		c.end()
		return
	}
	p.drop()
	p.waiting, p.network = c, network
	p.idle = time.AfterFunc(idleLimit, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.waiting == c {
			p.drop()
		}
	})
}

// drop ends the one that waits; p is locked.
func (p *pool) drop() {
	if p.waiting != nil {
		p.idle.Stop()
		p.waiting.end()
		p.waiting = nil
	}
}
