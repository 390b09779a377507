package vswitch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"

	"den/internal/network"
	"den/internal/network/gateway"
	"den/internal/oci"
)

// Options are what a Driver lets containers do.
type Options struct {
	// ResolvConf names the outer DNS servers; /etc/resolv.conf if empty.
	ResolvConf string
}

// A Driver is network.Driver for sandboxes with network stacks of their own. What
// it knows is of this process: another den's networks of the same name are others.
type Driver struct {
	o Options

	mu     sync.Mutex
	live   map[string]*live  // by network
	spaces map[string]*space // by container
}

// New returns a driver with nothing up. Close ends it.
func New(o Options) *Driver {
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	return &Driver{o: o, live: map[string]*live{}, spaces: map[string]*space{}}
}

// A live network passes frames.
type live struct {
	n       *network.Network
	mtu     int
	segment *segment
	gateway *gateway.Gateway
	names   *network.NameServer
	ports   map[string]*port   // by endpoint
	open    map[string]opening // by endpoint
}

// An opening is an endpoint's published ports.
type opening struct {
	ports []network.Port
	end   io.Closer
}

// side is a live network as network.OpenPorts wants it.
type side struct{ *gateway.Gateway }

// Namespace is Side's: there is none.
func (side) Namespace() *os.File { return nil }

// Name is Driver's.
func (d *Driver) Name() string { return network.SwitchDriver }

// Up is Driver's.
func (d *Driver) Up(_ context.Context, n *network.Network) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live[n.ID] != nil {
		return nil
	}
	l, err := d.start(n)
	if err != nil {
		return fmt.Errorf("switch of network %s: %w", n.Name, err)
	}
	d.live[n.ID] = l
	return nil
}

// mtu is the network's own if somebody asked for it; the outer route's has no
// meaning here, where TCP ends at the gateway and datagrams are taken apart by the outer kernel.
func mtu(n *network.Network) int {
	if n.AskedMTU {
		return min(n.MTU, MTU)
	}
	return MTU
}

func (d *Driver) start(n *network.Network) (*live, error) {
	l := &live{n: n, mtu: mtu(n), ports: map[string]*port{}, open: map[string]opening{}}
	l.segment = newSegment(gatewayMAC(n), l.mtu, n.Isolated)
	c := gateway.Config{Internal: n.Internal, HostLoopback: !n.NoHostLoopback, Refused: func(a netip.Addr) bool { return d.elsewhere(n.ID, a) }}
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() {
			c.Addresses = append(c.Addresses, netip.PrefixFrom(s.Gateway, s.Prefix.Bits()))
		}
	}
	var err error
	if l.gateway, err = gateway.New(c, ethernet.New(l.segment.uplink)); err != nil {
		return nil, err
	}
	outer := network.OuterServers(d.o.ResolvConf)
	if n.Internal {
		outer = nil
	}
	l.names = network.NewNameServer(n, outer)
	if err := l.serveNames(); err != nil {
		return nil, errors.Join(fmt.Errorf("DNS: %w", err), l.close())
	}
	return l, nil
}

func (l *live) serveNames() error {
	packets, err := l.gateway.ListenPacket(53)
	if err != nil {
		return err
	}
	streams, err := l.gateway.Listen(53)
	if err != nil {
		return err // close ends the others with the stack
	}
	return l.names.Serve(packets, streams)
}

// gatewayMAC is as good as random, and the same in every process.
func gatewayMAC(n *network.Network) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	_, _ = fmt.Sscanf(n.ID[:8], "%02x%02x%02x%02x", &mac[2], &mac[3], &mac[4], &mac[5])
	return mac
}

// elsewhere reports whether a belongs to another network: those are reached by published ports only.
func (d *Driver) elsewhere(id string, a netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for other, l := range d.live {
		if other != id && slices.ContainsFunc(l.n.Subnets, func(s network.Subnet) bool { return s.Prefix.Contains(a) }) {
			return true
		}
	}
	return false
}

// Down is Driver's.
func (d *Driver) Down(_ context.Context, n *network.Network) error {
	d.mu.Lock()
	l := d.live[n.ID]
	delete(d.live, n.ID)
	d.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.close()
}

// close is called without the driver's lock, which new flows ask for.
func (l *live) close() error {
	var err error
	for _, o := range l.open {
		err = errors.Join(err, o.end.Close())
	}
	err = errors.Join(err, l.names.Close())
	l.segment.close()
	return errors.Join(err, l.gateway.Close())
}

// Close takes all networks down.
func (d *Driver) Close() error {
	d.mu.Lock()
	all := d.live
	d.live = map[string]*live{}
	d.mu.Unlock()
	var err error
	for _, l := range all {
		err = errors.Join(err, l.close())
	}
	return err
}

// Connect is Driver's.
func (d *Driver) Connect(ctx context.Context, s network.Space, n *network.Network, e *network.Endpoint, isGateway bool) error {
	sp, ok := s.(*space)
	if !ok {
		return fmt.Errorf("connect %s: a space of another driver", e.Name)
	}
	if d.connected(n, e, isGateway) {
		return nil
	}
	i, err := d.connect(n, e, isGateway)
	if err != nil {
		return fmt.Errorf("connect %s to network %s: %w", e.Name, n.Name, err)
	}
	if err := sp.add(ctx, *i); err != nil {
		return errors.Join(fmt.Errorf("connect %s to network %s: %w", e.Name, n.Name, err), d.disconnect(n, e))
	}
	return nil
}

// connected reports whether the endpoint's device is as it is wanted.
func (d *Driver) connected(n *network.Network, e *network.Endpoint, isGateway bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.live[n.ID]; l != nil {
		p, ok := l.ports[e.ID]
		return ok && p.gateway == isGateway
	}
	return false
}

// connect makes the endpoint's port, and the device at the other end of its cable. One
// that is there already makes room: its device is another now.
func (d *Driver) connect(n *network.Network, e *network.Endpoint, isGateway bool) (*oci.Interface, error) {
	if err := d.disconnect(n, e); err != nil {
		return nil, err
	}
	mac, err := net.ParseMAC(e.MAC)
	if err != nil || len(mac) != len(hardware{}) {
		return nil, fmt.Errorf("hardware address %.40q: %w", e.MAC, errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.live[n.ID]
	if l == nil {
		return nil, errNotUp
	}
	i := &oci.Interface{Name: e.Device, MAC: mac, MTU: l.mtu}
	var own []netip.Addr
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			i.Addresses = append(i.Addresses, p)
			own = append(own, p.Addr())
		}
	}
	if isGateway && !n.Internal {
		i.Gateways = n.Gateways()
	}
	ours, theirs, err := newCable()
	if err != nil {
		return nil, err
	}
	p, err := l.segment.add(ours, mac, own)
	if err != nil {
		return nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	p.gateway = isGateway
	l.ports[e.ID] = p
	i.Cable = theirs
	return i, nil
}

// errNotUp is about a network that this process has no switch for.
var errNotUp = fmt.Errorf("it is not up in this process: %w", errdefs.ErrFailedPrecondition)

// Disconnect is Driver's. Without s the container has ended; its space goes with its last device.
func (d *Driver) Disconnect(ctx context.Context, s network.Space, n *network.Network, e *network.Endpoint) error {
	err := d.disconnect(n, e)
	if sp, ok := s.(*space); ok && sp != nil {
		return errors.Join(err, sp.remove(ctx, e.Device))
	}
	d.mu.Lock()
	sp := d.spaces[e.Container]
	delete(d.spaces, e.Container)
	d.mu.Unlock()
	if sp != nil {
		err = errors.Join(err, sp.Close())
	}
	return err
}

func (d *Driver) disconnect(n *network.Network, e *network.Endpoint) error {
	d.mu.Lock()
	var p *port
	l := d.live[n.ID]
	if l != nil {
		p = l.ports[e.ID]
		delete(l.ports, e.ID)
	}
	d.mu.Unlock()
	if p != nil {
		l.segment.remove(p)
	}
	return nil
}

// Publish is Driver's.
func (d *Driver) Publish(_ context.Context, n *network.Network, e *network.Endpoint) ([]network.Port, error) {
	d.mu.Lock()
	l := d.live[n.ID]
	if l == nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("publish ports of %s: network %s: %w", e.Name, n.Name, errNotUp)
	}
	o, done := l.open[e.ID]
	d.mu.Unlock()
	if done {
		return o.ports, nil
	}
	ports, end, err := network.OpenPorts(side{l.gateway}, e)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l.open[e.ID] = opening{ports, end}
	return ports, nil
}

// Withdraw is Driver's.
func (d *Driver) Withdraw(_ context.Context, n *network.Network, e *network.Endpoint) error {
	d.mu.Lock()
	var o opening
	if l := d.live[n.ID]; l != nil {
		o = l.open[e.ID]
		delete(l.open, e.ID)
	}
	d.mu.Unlock()
	if o.end == nil {
		return nil
	}
	return o.end.Close()
}

// Names is Driver's.
func (d *Driver) Names(_ context.Context, n *network.Network, z *network.Zone) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.live[n.ID]; l != nil {
		l.names.SetZone(z)
	}
	return nil
}

// Resolver is Driver's: the gateway.
func (d *Driver) Resolver(n *network.Network) netip.Addr {
	if as := n.Gateways(); len(as) > 0 {
		return as[0]
	}
	return netip.Addr{}
}
