package sentry

import "golang.org/x/sys/unix"

// admit lives the life of a box that joins b, which den talks to over c.
func (b *box) admit(c *control, r *request, files descriptors) {
	defer c.close()
	n, err := b.neighbour(c)
	if err != nil {
		files.close()
		_ = c.tell(&event{Failed: describe(err)}) // nobody may be there any more
		return
	}
	defer b.boxes.Done()
	n.with, n.r, n.files = b, r, files
	n.ctx = &boxContext{b.k.SupervisorContext(), n}
	err = n.make()
	n.with = nil
	if err != nil {
		n.undo()
		_ = c.tell(&event{Failed: describe(err)})
		n.leave()
		return
	}
	if n.init != nil {
		b.k.StartProcess(n.init)
	}
	b.k.StartProcess(n.payload)
	_ = c.tell(&event{Started: true}) // if nobody is there any more, serve ends at once
	go n.finish()
	n.serve()
	n.abandon()
}

// neighbour is a new box, unless b has ended.
func (b *box) neighbour(c *control) (*box, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	if b.ended {
		return nil, errEnded
	}
	b.boxes.Add(1)
	return b.newBox(c), nil
}

// undo ends what make has made of a box that cannot start.
func (b *box) undo() {
	for _, tg := range b.groups() {
		b.discard(tg)
	}
	b.killAll()
	if b.term != nil {
		b.term.finish()
	}
}

// abandon ends a box that den has no more use for, and returns when it has.
func (b *box) abandon() {
	b.signal(unix.SIGKILL)
	<-b.finished
}
