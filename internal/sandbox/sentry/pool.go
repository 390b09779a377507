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

	mu      sync.Mutex
	starts  int
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
	c, err = spawn(sentryName, p.platform, network)
	return c, false, err
}

// refill starts the next sentry, if another one is expected. That it fails is
// no news: whoever needs one starts one.
func (p *pool) refill(network string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.starts < minStarts || p.waiting != nil && p.network == network {
		return
	}
	p.drop()
	c, err := spawn(sentryName, p.platform, network)
	if err != nil {
		return
	}
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
