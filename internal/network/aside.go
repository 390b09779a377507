package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A sharer is a driver whose networks are in one place with those of other engines,
// so that no two of them may have the same subnets while they are up.
type sharer interface {
	// Claim returns the subnets that others than n have there. Until release is called no other
	// engine claims any.
	Claim(ctx context.Context, n *Network) (used []netip.Prefix, release func(), err error)
}

// moveAside gives n, which is about to come up, other subnets if somebody uses its own meanwhile and
// no user has chosen them. It is the network as it is then. The caller has its lock, and releases the
// claim when n is up.
func (ns *Networks) moveAside(ctx context.Context, n *Network) (release func(), err error) {
	s, shares := ns.driver.(sharer)
	if !shares || n.Configured {
		return func() {}, nil
	}
	dir := ns.network(n.ID)
	now, err := ReadNetwork(dir)
	if err != nil {
		return nil, err
	}
	*n = *now
	if es, err := ReadEndpoints(dir); err != nil || len(es) > 0 {
		return func() {}, err
	}
	used, release, err := s.Claim(ctx, n)
	if err != nil {
		return nil, err
	}
	clash := slices.ContainsFunc(n.Subnets, func(own Subnet) bool { return slices.ContainsFunc(used, own.Prefix.Overlaps) })
	if clash {
		err = ns.moveTo(n, used)
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// moveTo chooses n's subnets again.
func (ns *Networks) moveTo(n *Network, used []netip.Prefix) error {
	lock, err := ns.lockRecords()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	others, err := ns.all()
	if err != nil {
		return err
	}
	others = slices.DeleteFunc(others, func(o *Network) bool { return o.ID == n.ID })
	moved := *n
	moved.Subnets = nil
	if err := moved.chooseSubnets(CreateRequest{NoIPv4: n.family(false) == nil}, ns.o.Pools, others, used); err != nil {
		return err
	}
	*n = moved
	return writeJSON(filepath.Join(ns.network(n.ID), networkFile), n)
}

// claimTime bounds how long another engine may hold its claim: whoever is in the outer
// network namespace can hold it for ever.
const claimTime = 5 * time.Second

// Claim is sharer's. The claim is an abstract socket's name: those are of one network
// namespace, as bridges are, and end with their process (unix(7)).
func (b *Bridge) Claim(ctx context.Context, n *Network) (used []netip.Prefix, release func(), err error) {
	link, err := netlink.LinkByName(bridgeName(n))
	if err == nil && link.Attrs().Alias == alias(n) {
		return nil, func() {}, nil // it is up: others keep away from it
	}
	var l *net.UnixListener
	for end := time.Now().Add(claimTime); ; {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@den-subnets"})
		if err == nil || !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		time.Sleep(2 * time.Millisecond) // nobody tells when a name is free
	}
	release = func() {}
	if err == nil {
		release = func() { _ = l.Close() }
	}
	outer, err := ReadOuter() // also without the claim: two engines seldom start at once
	if err != nil {
		release()
		return nil, nil, err
	}
	return outer.Used, release, nil
}
