package network

import (
	"context"
	"errors"
	"os"
	"time"
)

// A Mortal is a Driver whose networks have something that can die by itself.
type Mortal interface {
	Driver
	// Alive says that nothing of n, which is up, has died.
	Alive(n *Network) bool
}

// watchPeriod is how long names and ports may be away after something of a network
// died. Looking costs two system calls for each network.
const watchPeriod = 2 * time.Second

// Watch brings back what dies of networks that have endpoints, until ctx ends.
// report is told what cannot be brought back; it is tried again.
func (ns *Networks) Watch(ctx context.Context, report func(error)) {
	d, ok := ns.driver.(Mortal)
	if !ok {
		return
	}
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := ns.revive(ctx, d); err != nil && ctx.Err() == nil {
			report(err)
		}
	}
}

func (ns *Networks) revive(ctx context.Context, d Mortal) error {
	all, err := ns.all()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all {
		es, err := ReadEndpoints(ns.network(n.ID))
		if errors.Is(err, os.ErrNotExist) || err == nil && (len(es) == 0 || d.Alive(n)) {
			continue
		}
		if err == nil {
			err = ns.restore(ctx, n) // looks again, under the network's lock
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
