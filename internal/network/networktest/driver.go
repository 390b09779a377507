// Package networktest has a network driver without a network, for tests of what
// stands above drivers.
package networktest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"den/internal/network"
	"den/internal/oci"
)

// A Driver remembers what it was told. Its fields may be read under Lock.
type Driver struct {
	sync.Mutex
	// Networks are those that are up, by id.
	Networks map[string]*network.Network
	// Devices are the endpoints in each container's space, by container and device.
	Devices map[string]map[string]network.Endpoint
	// Gateways are the networks of the containers' default routes.
	Gateways map[string]string
	// Published are the open ports, by endpoint.
	Published map[string][]network.Port
	// Zones are the names told last, by network.
	Zones map[string]network.Zone
	// Fail, if not nil, is asked before each method; its error is the method's.
	Fail func(method string) error

	port uint16
}

// New returns a driver with nothing up.
func New() *Driver {
	return &Driver{
		Networks: map[string]*network.Network{}, Devices: map[string]map[string]network.Endpoint{},
		Gateways: map[string]string{}, Published: map[string][]network.Port{}, Zones: map[string]network.Zone{}, port: 49152,
	}
}

func (d *Driver) enter(method string) (func(), error) {
	d.Lock()
	if d.Fail != nil {
		if err := d.Fail(method); err != nil {
			d.Unlock()
			return nil, err
		}
	}
	return d.Unlock, nil
}

// Name is "fake".
func (d *Driver) Name() string { return "fake" }

// Up notes that n is up.
func (d *Driver) Up(_ context.Context, n *network.Network) error {
	leave, err := d.enter("Up")
	if err != nil {
		return err
	}
	defer leave()
	d.Networks[n.ID] = n
	return nil
}

// Down notes that n is down.
func (d *Driver) Down(_ context.Context, n *network.Network) error {
	leave, err := d.enter("Down")
	if err != nil {
		return err
	}
	defer leave()
	delete(d.Networks, n.ID)
	delete(d.Zones, n.ID)
	return nil
}

type space string

func (space) Namespace() *os.File         { return nil }
func (space) Interfaces() []oci.Interface { return nil }
func (space) SetPlug(func(context.Context, oci.Interface) error, func(context.Context, string) error) {
}
func (space) Close() error { return nil }

// NewSpace is a new, empty one.
func (d *Driver) NewSpace(_ context.Context, container string) (network.Space, error) {
	leave, err := d.enter("NewSpace")
	if err != nil {
		return nil, err
	}
	defer leave()
	d.Devices[container] = map[string]network.Endpoint{}
	return space(container), nil
}

// OpenSpace is NewSpace's.
func (d *Driver) OpenSpace(_ context.Context, container string, _ int) (network.Space, error) {
	leave, err := d.enter("OpenSpace")
	if err != nil {
		return nil, err
	}
	defer leave()
	if d.Devices[container] == nil {
		return nil, fmt.Errorf("container %s: no space", container)
	}
	return space(container), nil
}

// Connect notes e in s.
func (d *Driver) Connect(_ context.Context, s network.Space, n *network.Network, e *network.Endpoint, gateway bool) error {
	leave, err := d.enter("Connect")
	if err != nil {
		return err
	}
	defer leave()
	if d.Networks[n.ID] == nil {
		return fmt.Errorf("network %s is not up", n.Name)
	}
	c := string(s.(space))
	d.Devices[c][e.Device] = *e
	if gateway {
		d.Gateways[c] = n.ID
	}
	return nil
}

// Disconnect forgets e; without s, all of its container.
func (d *Driver) Disconnect(_ context.Context, s network.Space, n *network.Network, e *network.Endpoint) error {
	leave, err := d.enter("Disconnect")
	if err != nil {
		return err
	}
	defer leave()
	delete(d.Devices[e.Container], e.Device)
	if d.Gateways[e.Container] == n.ID {
		delete(d.Gateways, e.Container)
	}
	if s == nil && len(d.Devices[e.Container]) == 0 {
		delete(d.Devices, e.Container)
	}
	return nil
}

// Publish assigns ports from 49152 on where none is asked for.
func (d *Driver) Publish(_ context.Context, _ *network.Network, e *network.Endpoint) ([]network.Port, error) {
	leave, err := d.enter("Publish")
	if err != nil {
		return nil, err
	}
	defer leave()
	ports := slices.Clone(e.Ports)
	for i := range ports {
		if ports[i].Host == 0 {
			ports[i].Host = d.port
			d.port++
		}
		ports[i].HostEnd = 0
	}
	d.Published[e.ID] = ports
	return ports, nil
}

// Withdraw forgets the ports.
func (d *Driver) Withdraw(_ context.Context, _ *network.Network, e *network.Endpoint) error {
	leave, err := d.enter("Withdraw")
	if err != nil {
		return err
	}
	defer leave()
	delete(d.Published, e.ID)
	return nil
}

// Names notes z.
func (d *Driver) Names(_ context.Context, n *network.Network, z *network.Zone) error {
	leave, err := d.enter("Names")
	if err != nil {
		return err
	}
	defer leave()
	d.Zones[n.ID] = *z
	return nil
}

// Resolver is the network's first gateway.
func (d *Driver) Resolver(n *network.Network) netip.Addr { return n.Gateways()[0] }
