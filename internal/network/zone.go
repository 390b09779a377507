package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"den/internal/durable"
)

// announce tells every network that the endpoints' containers are on what it
// resolves now: who is on two networks resolves the names of both on either.
func (ns *Networks) announce(ctx context.Context, es []Endpoint) error {
	ids := map[string]bool{}
	for _, e := range es {
		others, err := ReadEndpoints(ns.network(e.Network))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		ids[e.Network] = true
		for _, o := range others {
			of, err := ns.endpointsOf(o.Container)
			if err != nil {
				return err
			}
			for _, x := range of {
				ids[x.Network] = true
			}
		}
	}
	var errs []error
	for id := range ids {
		errs = append(errs, ns.announceTo(ctx, id))
	}
	return errors.Join(errs...)
}

func (ns *Networks) announceTo(ctx context.Context, id string) error {
	return ns.withRecords(id, func(n *Network, es []Endpoint) error {
		if len(es) == 0 {
			return nil // it is down
		}
		return ns.tell(ctx, n)
	})
}

// tell writes the network's zone and has the driver answer by it.
func (ns *Networks) tell(ctx context.Context, n *Network) error {
	z, err := ns.zone(n)
	if err != nil {
		return err
	}
	b, err := json.Marshal(z)
	if err != nil {
		return err
	}
	path := filepath.Join(ns.network(n.ID), zoneFile)
	if ns.knows(n, b) {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) { // and nobody else has told another
			return nil
		}
	}
	ns.note(n, nil)
	// Replacing a file has ext4 write it to the disk. Who reads in between is told again.
	if err := forget(path); err != nil {
		return err
	}
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	if err := ns.driver.Names(ctx, n, z); err != nil {
		return fmt.Errorf("names of network %s: %w", n.Name, err)
	}
	ns.note(n, b)
	return nil
}

// note keeps what zone the driver was told; nil is none.
func (ns *Networks) note(n *Network, zone []byte) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if zone == nil {
		delete(ns.told, n.ID)
		return
	}
	if ns.told == nil {
		ns.told = map[string][]byte{}
	}
	ns.told[n.ID] = zone
}

func (ns *Networks) knows(n *Network, zone []byte) bool {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	told, ok := ns.told[n.ID]
	return ok && bytes.Equal(told, zone)
}

// zone is what the network's clients resolve, by the records.
func (ns *Networks) zone(n *Network) (*Zone, error) {
	all, err := ns.all()
	if err != nil {
		return nil, err
	}
	own, err := ReadEndpoints(ns.network(n.ID))
	if err != nil {
		return nil, err
	}
	z := &Zone{Reverse: map[netip.Addr]string{}, Forward: map[netip.Addr][]netip.Addr{}}
	clients := map[string][]netip.Addr{} // by container, on this network
	for _, e := range own {
		clients[e.Container] = e.addresses()
		for _, a := range e.addresses() {
			if servers := e.DNS; len(servers) > 0 {
				z.Forward[a] = servers
			} else if len(ns.o.DNS) > 0 {
				z.Forward[a] = ns.o.DNS
			}
		}
	}
	for _, m := range all {
		es := own
		if m.ID != n.ID {
			if es, err = ReadEndpoints(ns.network(m.ID)); errors.Is(err, os.ErrNotExist) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		z.add(n, m, es, clients)
	}
	return z, nil
}

// add adds the names of m's endpoints es, as the clients of n see them.
func (z *Zone) add(n, m *Network, es []Endpoint, clients map[string][]netip.Addr) {
	var seers []netip.Addr // clients of n that are on m, too
	addresses := map[string][]netip.Addr{}
	for _, e := range es {
		addresses[e.Container] = e.addresses()
		seers = append(seers, clients[e.Container]...)
	}
	if n.ID == m.ID {
		seers = nil // everybody
	} else if len(seers) == 0 {
		return
	}
	for _, e := range es {
		for name, target := range e.Links {
			if mine := clients[e.Container]; len(mine) > 0 && len(addresses[target]) > 0 {
				z.Names = append(z.Names, Name{Name: name, For: mine, Addresses: addresses[target]})
			}
		}
		if m.Default {
			continue
		}
		for _, name := range e.names() {
			z.Names = append(z.Names, Name{Name: name, For: seers, Addresses: e.addresses()})
			z.Names = append(z.Names, Name{Name: name + "." + m.Name, For: seers, Addresses: e.addresses()})
		}
		if n.ID == m.ID {
			for _, a := range e.addresses() {
				z.Reverse[a] = e.Name + "." + m.Name
			}
		}
	}
}

// names are what other containers may call this one, without duplicates.
func (e *Endpoint) names() []string {
	names := append([]string{e.Name, short(e.Container)}, e.Aliases...)
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(s string) bool { return strings.Trim(s, ".") == "" })
}

// addresses are the endpoint's, without their prefixes.
func (e *Endpoint) addresses() []netip.Addr {
	var as []netip.Addr
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			as = append(as, p.Addr())
		}
	}
	return as
}
