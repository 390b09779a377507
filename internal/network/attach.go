package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/failpoint"
)

// undoTime bounds how long taking back a failed or ended connection may take.
const undoTime = 30 * time.Second

// Attach gives a container that is about to start its space, and in it a device
// for each request. On an error nothing of it is left.
func (ns *Networks) Attach(ctx context.Context, container string, rs []EndpointRequest) (Space, []Endpoint, error) {
	// What a crash left of an earlier life of the container is in the way.
	if err := ns.Release(ctx, container); err != nil {
		return nil, nil, err
	}
	nets := make([]*Network, len(rs))
	for i, r := range rs {
		n, err := ns.Network(ctx, r.Network)
		if err != nil {
			return nil, nil, err
		}
		nets[i] = n
	}
	s, err := ns.driver.NewSpace(ctx, container)
	if err != nil {
		return nil, nil, fmt.Errorf("network of container %s: %w", short(container), err)
	}
	gateway := chooseGateway(nets, rs)
	var es []Endpoint
	for i, r := range rs {
		r.Container = container
		e, err := ns.join(ctx, s, nets[i], r, i == gateway)
		if err != nil {
			return nil, nil, errors.Join(err, ns.undo(ctx, container), s.Close())
		}
		es = append(es, *e)
	}
	if err := ns.announce(ctx, es); err != nil {
		return nil, nil, errors.Join(err, ns.undo(ctx, container), s.Close())
	}
	return s, es, nil
}

func (ns *Networks) undo(ctx context.Context, container string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return ns.Release(ctx, container)
}

// chooseGateway is dockerd's choice: the highest priority, then the first name,
// of the networks that lead anywhere; -1 if none does.
func chooseGateway(nets []*Network, rs []EndpointRequest) int {
	best := -1
	for i, n := range nets {
		if n.Internal {
			continue
		}
		if best < 0 || rs[i].Priority > rs[best].Priority ||
			rs[i].Priority == rs[best].Priority && n.Name < nets[best].Name {
			best = i
		}
	}
	return best
}

// Connect puts a container that runs on one more network.
func (ns *Networks) Connect(ctx context.Context, container string, pid int, s Space, r EndpointRequest) (*Endpoint, error) {
	n, err := ns.Network(ctx, r.Network)
	if err != nil {
		return nil, err
	}
	have, err := ns.endpointsOf(container)
	if err != nil {
		return nil, err
	}
	if s == nil {
		if s, err = ns.driver.OpenSpace(ctx, container, pid); err != nil {
			return nil, err
		}
		defer func() { _ = s.Close() }()
	}
	gateway := !n.Internal && !slices.ContainsFunc(have, func(e Endpoint) bool { return e.Gateway })
	r.Container = container
	e, err := ns.join(ctx, s, n, r, gateway)
	if err != nil {
		return nil, err
	}
	if err := ns.announce(ctx, append(have, *e)); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, ns.leave(ctx, s, n, e))
	}
	return e, nil
}

// join records an endpoint and makes it work, ports included; it announces nothing.
func (ns *Networks) join(ctx context.Context, s Space, n *Network, r EndpointRequest, gateway bool) (*Endpoint, error) {
	lock, err := ns.lockNetwork(n.ID)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	release, err := ns.moveAside(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	e, err := ns.record(n, r, gateway)
	if err != nil {
		release()
		return nil, err
	}
	if err = failpoint.Hit("network.join.up"); err == nil {
		err = ns.driver.Up(ctx, n)
	}
	release()
	if err == nil {
		err = failpoint.Hit("network.join.connect")
	}
	if err == nil {
		err = ns.driver.Connect(ctx, s, n, e, gateway)
	}
	if err == nil {
		err = failpoint.Hit("network.join.publish")
	}
	if err != nil {
		err = fmt.Errorf("network %s: %w", n.Name, err)
	} else if gateway {
		err = ns.publish(ctx, n, e, r.Ports)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, ns.part(ctx, s, n, e))
	}
	return e, nil
}

// record gives the endpoint its addresses and writes them down.
func (ns *Networks) record(n *Network, r EndpointRequest, gateway bool) (*Endpoint, error) {
	if err := n.mayAsk(r); err != nil {
		return nil, err
	}
	lock, err := ns.lockRecords()
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	others, err := ReadEndpoints(ns.network(n.ID))
	if err != nil {
		return nil, err
	}
	own, err := ns.endpointsOf(r.Container)
	if err != nil {
		return nil, err
	}
	taken, macs := map[netip.Addr]bool{}, map[string]bool{}
	for _, o := range others {
		if o.Container == r.Container {
			return nil, errForbidden("endpoint with name %s already exists in network %s", r.Name, n.Name)
		}
		taken[o.IPv4.Addr()], taken[o.IPv6.Addr()], macs[o.MAC] = true, true, true
	}
	e := &Endpoint{
		ID: randomID(), Network: n.ID, Container: r.Container, Name: r.Name, Aliases: slices.Clone(r.Aliases),
		Links: maps.Clone(r.Links), DNS: slices.Clone(r.DNS), Priority: r.Priority, Gateway: gateway, Device: device(own),
	}
	if sub := n.family(false); sub != nil {
		if e.IPv4, err = sub.give(n, r.IPv4, taken); err != nil {
			return nil, err
		}
	}
	if sub := n.family(true); sub != nil {
		if e.IPv6, err = sub.give(n, r.IPv6, taken); err != nil {
			return nil, err
		}
	}
	mac, err := chooseMAC(r.MAC, e.IPv4.Addr())
	if err != nil {
		return nil, err
	}
	if e.MAC = mac.String(); macs[e.MAC] {
		return nil, errForbidden("MAC address %s is already in use on network %s", e.MAC, n.Name)
	}
	return e, writeJSON(ns.endpointPath(n.ID, e.Container), e)
}

// mayAsk says whether this network gives what an endpoint asks for.
func (n *Network) mayAsk(r EndpointRequest) error {
	if !r.IPv4.IsValid() && !r.IPv6.IsValid() {
		return nil
	}
	if n.Default {
		return errInvalid("user specified IP address is supported on user defined networks only")
	}
	if !n.Configured {
		return errInvalid("user specified IP address is supported only when connecting to networks with user configured subnets")
	}
	if r.IPv4.IsValid() && n.family(false) == nil || r.IPv6.IsValid() && n.family(true) == nil {
		return errInvalid("no configured subnet or ip-range contain the IP address asked for: network %s has none of its version", n.Name)
	}
	return nil
}

// device is the first name ethN that no endpoint of the container has.
func device(own []Endpoint) string {
	for i := 0; ; i++ {
		name := "eth" + strconv.Itoa(i)
		if !slices.ContainsFunc(own, func(e Endpoint) bool { return e.Device == name }) {
			return name
		}
	}
}

// Disconnect takes a container off a network. s may be nil if the container has ended.
func (ns *Networks) Disconnect(ctx context.Context, container string, s Space, network string, force bool) error {
	n, err := ns.Network(ctx, network)
	if err != nil {
		return err
	}
	have, err := ns.endpointsOf(container)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(have, func(e Endpoint) bool { return e.Network == n.ID })
	if i < 0 {
		if force {
			return nil
		}
		return errForbidden("container %s is not connected to network %s", short(container), n.Name)
	}
	e := have[i]
	if err := ns.leave(ctx, s, n, &e); err != nil && !force {
		return err
	}
	rest := slices.Delete(have, i, i+1)
	if e.Gateway && s != nil {
		if err := ns.moveGateway(ctx, s, rest, e.Ports); err != nil {
			return err
		}
	}
	return ns.announce(ctx, append(rest, e))
}

// moveGateway gives the default route, and the ports, to the next of a container's endpoints.
func (ns *Networks) moveGateway(ctx context.Context, s Space, es []Endpoint, ports []Port) error {
	nets, rs := make([]*Network, len(es)), make([]EndpointRequest, len(es))
	for i, e := range es {
		n, err := ns.Network(ctx, e.Network)
		if err != nil {
			return err
		}
		nets[i], rs[i].Priority = n, e.Priority
	}
	i := chooseGateway(nets, rs)
	if i < 0 {
		return nil
	}
	lock, err := ns.lockNetwork(nets[i].ID)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	e := es[i]
	e.Gateway = true
	if err := writeJSON(ns.endpointPath(e.Network, e.Container), &e); err != nil {
		return err
	}
	if err := ns.driver.Connect(ctx, s, nets[i], &e, true); err != nil {
		return err
	}
	return ns.publish(ctx, nets[i], &e, ports)
}

// leave is part under the network's lock.
func (ns *Networks) leave(ctx context.Context, s Space, n *Network, e *Endpoint) error {
	lock, err := ns.lockNetwork(n.ID)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	return ns.part(ctx, s, n, e)
}

// part takes an endpoint away, and the network down if it was the last and none is to linger. The
// record goes when all else is gone, so that who dies here is followed by a
// Release that finds it.
func (ns *Networks) part(ctx context.Context, s Space, n *Network, e *Endpoint) error {
	err := ns.driver.Withdraw(ctx, n, e)
	err = errors.Join(err, failpoint.Hit("network.part.disconnect"), ns.driver.Disconnect(ctx, s, n, e))
	if err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	if err := failpoint.Hit("network.part.forget"); err != nil {
		return err
	}
	if err := forget(ns.endpointPath(n.ID, e.Container)); err != nil {
		return err
	}
	es, err := ReadEndpoints(ns.network(n.ID))
	if err != nil || len(es) > 0 || ns.o.Linger {
		return err
	}
	if err := failpoint.Hit("network.part.down"); err != nil {
		return err
	}
	return ns.down(ctx, n)
}

// down takes n down; the caller has its lock.
func (ns *Networks) down(ctx context.Context, n *Network) error {
	ns.note(n, nil)
	return ns.driver.Down(ctx, n)
}

// Settle takes down the networks that linger without containers.
func (ns *Networks) Settle(ctx context.Context) error {
	all, err := ns.all()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all {
		errs = append(errs, ns.settle(ctx, n))
	}
	return errors.Join(errs...)
}

func (ns *Networks) settle(ctx context.Context, n *Network) error {
	lock, err := ns.lockNetwork(n.ID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	es, err := ReadEndpoints(ns.network(n.ID))
	if err != nil || len(es) > 0 {
		return err
	}
	return ns.down(ctx, n)
}

// Release takes a container that has ended off all its networks.
func (ns *Networks) Release(ctx context.Context, container string) error {
	es, err := ns.endpointsOf(container)
	if err != nil || len(es) == 0 {
		return err
	}
	var errs []error
	for _, e := range es {
		n, err := ns.Network(ctx, e.Network)
		if err == nil {
			err = ns.leave(ctx, nil, n, &e)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, ns.announce(ctx, es))...)
}

// mac is the endpoint's, which was checked when it was written.
func (e *Endpoint) mac() net.HardwareAddr {
	mac, _ := net.ParseMAC(e.MAC)
	return mac
}
