package network

import (
	"errors"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// renew makes networks what this process's options want of every network: whether containers
// reach the outer loopback addresses, and, while nobody is on them, the outer route's MTU, which
// is another one when the directory has come to another outer container.
func (ns *Networks) renew() error {
	outer, err := ns.o.Outer()
	if err != nil {
		return err
	}
	all, err := ns.all()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all {
		if n.NoHostLoopback != ns.o.NoHostLoopback || !n.AskedMTU && n.MTU != outer.mtu() {
			errs = append(errs, ns.renewOne(n.ID, outer.mtu()))
		}
	}
	return errors.Join(errs...)
}

// renewOne writes a network's record again. Its den-net, if it has one, is replaced when
// the network comes up the next time (Keeper.Start).
func (ns *Networks) renewOne(id string, mtu int) error {
	return ns.withRecords(id, func(n *Network, es []Endpoint) error {
		n.NoHostLoopback = ns.o.NoHostLoopback
		if !n.AskedMTU && len(es) == 0 {
			n.MTU = mtu
		}
		return writeJSON(filepath.Join(ns.network(id), networkFile), n)
	})
}

// withRecords calls f with what is recorded of a network, under its lock. One that is gone is
// nothing to do.
func (ns *Networks) withRecords(id string, f func(*Network, []Endpoint) error) error {
	lock, err := ns.lockNetwork(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	n, err := ReadNetwork(ns.network(id))
	if err != nil {
		return err
	}
	es, err := ReadEndpoints(ns.network(id))
	if err != nil {
		return err
	}
	return f(n, es)
}
