package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Reconcile makes true again what the records say, after a crash of den, of a
// den-net or of the machine: endpoints whose container is not alive are
// released, networks of the others brought up, their ports opened again.
func (ns *Networks) Reconcile(ctx context.Context, alive func(container string) bool) error {
	if err := ns.sweep(); err != nil {
		return err
	}
	all, err := ns.all()
	if err != nil {
		return err
	}
	var errs []error
	dead := map[string]bool{}
	for _, n := range all {
		es, err := ReadEndpoints(ns.network(n.ID))
		if err != nil {
			return err
		}
		for _, e := range es {
			if _, known := dead[e.Container]; !known {
				dead[e.Container] = !alive(e.Container)
			}
		}
	}
	for _, c := range slices.Sorted(maps.Keys(dead)) {
		if dead[c] {
			errs = append(errs, ns.Release(ctx, c))
		}
	}
	for _, n := range all {
		errs = append(errs, ns.restore(ctx, n))
	}
	return errors.Join(errs...)
}

// restore makes the driver do for n what its records say.
func (ns *Networks) restore(ctx context.Context, n *Network) error {
	lock, err := ns.lockNetwork(n.ID)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	es, err := ReadEndpoints(ns.network(n.ID))
	if err != nil {
		return err
	}
	if len(es) == 0 {
		return ns.down(ctx, n)
	}
	ns.note(n, nil) // who answers now was told by somebody else, or nothing
	if err := ns.driver.Up(ctx, n); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	var errs []error
	for _, e := range es {
		errs = append(errs, ns.reconnect(ctx, n, &e))
		if len(e.Ports) > 0 {
			_, err := ns.driver.Publish(ctx, n, &e)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, ns.tell(ctx, n))...)
}

// reconnect puts an endpoint's device back if it was lost. One that is there stays.
func (ns *Networks) reconnect(ctx context.Context, n *Network, e *Endpoint) error {
	if ns.pid == nil {
		return nil
	}
	pid := ns.pid(e.Container)
	if pid <= 0 {
		return nil
	}
	s, err := ns.driver.OpenSpace(ctx, e.Container, pid)
	if err != nil {
		return fmt.Errorf("network %s: container %s: %w", n.Name, e.Name, err)
	}
	if err := ns.driver.Connect(ctx, s, n, e, e.Gateway); err != nil {
		return errors.Join(fmt.Errorf("network %s: container %s: %w", n.Name, e.Name, err), s.Close())
	}
	return s.Close()
}
