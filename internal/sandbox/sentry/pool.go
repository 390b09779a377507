package sentry

import (
	"sync"
	"time"
)

// A pool keeps a sentry that has made itself ready and waits for a request: then a
// sandbox starts in a third of the time. Where sandboxes follow each other faster than sentries
// make themselves ready it keeps two, which do so at the same time.
//
// What it keeps ends with Executor.Close, with den, like every child, and when it was
// not needed for idleLimit.
type pool struct {
	platform string

	mu      sync.Mutex
	starts  int // of sandboxes
	spawned int // sentries
	filling bool
	closed  bool
	late    bool     // the last one that was taken was not ready yet
	waiting []*child // the oldest first
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
	if len(p.waiting) > 0 && p.network == network {
		c = p.waiting[0]
		p.waiting = p.waiting[1:]
		p.late = !c.hasSpoken()
		if len(p.waiting) == 0 {
			p.idle.Stop()
		}
	}
	p.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	c, err = p.spawn(network)
	return c, false, err
}

// missing is how many sentries should wait and do not; p is locked.
func (p *pool) missing(network string) int {
	switch {
	case p.starts < minStarts || p.closed || p.filling:
		return 0
	case p.network != network: // those are of no use
		return 1
	case p.late:
		return 2 - len(p.waiting)
	}
	return 1 - len(p.waiting)
}

// spawn starts a sentry.
func (p *pool) spawn(network string) (*child, error) {
	c, err := spawn(sentryName, p.platform, network)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.spawned++
	p.mu.Unlock()
	return c, nil
}

// refill starts the next sentries, if others are expected. That it fails is
// no news: whoever needs one starts one.
func (p *pool) refill(network string) {
	p.mu.Lock()
	n := p.missing(network)
	p.filling = p.filling || n > 0
	p.mu.Unlock()
	if n <= 0 {
		return
	}
	var more []*child
	for range n {
		c, err := p.spawn(network)
		if err != nil {
			break
		}
		more = append(more, c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filling = false
	p.keep(network, more...)
}

// expect starts a sentry for the first sandbox, before it is asked for. Who takes one meanwhile waits until it is there.
func (p *pool) expect(network string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.starts > 0 || p.closed || p.filling || len(p.waiting) > 0 && p.network == network {
		return
	}
	if c, err := spawn(sentryName, p.platform, network); err == nil {
		p.spawned++
		p.keep(network, c)
	}
}

// A Spare is a sentry that makes itself ready before it is known whether sentries run here, which takes as long to find
// out: on systrap, the platform that is found nearly everywhere.
type Spare struct {
	child   *child
	network string
}

// NewSpare starts one for a sandbox on that network; nil, which is no sentry, where that fails, since Try says why.
func NewSpare(network string) *Spare {
	if checkBuild() != nil {
		return nil
	}
	c, err := spawn(sentryName, platformSystrap, network)
	if err != nil {
		return nil
	}
	return &Spare{c, network}
}

// End ends it, if New was not given it.
func (s *Spare) End() {
	if s != nil && s.child != nil {
		s.child.end()
		s.child = nil
	}
}

// adopt has a spare sentry wait, if it is on the pool's platform.
func (p *pool) adopt(s *Spare) {
	if s == nil || s.child == nil {
		return
	}
	if p.platform != platformSystrap {
		s.End()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spawned++
	p.keep(s.network, s.child)
	s.child = nil
}

// keep has more sentries wait; p is locked.
func (p *pool) keep(network string, more ...*child) {
	if p.network != network || p.closed {
		p.drop()
	}
	p.waiting, p.network = append(p.waiting, more...), network
	switch {
	case p.closed:
		p.drop()
	case p.idle == nil:
		p.idle = time.AfterFunc(idleLimit, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.drop()
		})
	default:
		p.idle.Reset(idleLimit)
	}
}

// drop ends those that wait; p is locked.
func (p *pool) drop() {
	if p.idle != nil {
		p.idle.Stop()
	}
	for _, c := range p.waiting {
		c.end()
	}
	p.waiting = nil
}
