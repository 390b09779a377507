// Package userns is the network driver of den in a user namespace: a kernel bridge in
// a network namespace of its own for each network, veth pairs into the containers',
// and a gateway in user space as the way out.
//
// The outer network namespace belongs to somebody else there: den can make sockets
// in it and nothing more. So the network's den-net makes a namespace with a bridge,
// takes a packet socket of the bridge, and turns what containers send into its own
// sockets outside. No device for tunnels, no setuid helper, no netfilter rule.
package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"den/internal/network"
	"den/internal/network/gateway"
)

// bridgeName is the bridge's in its namespace, where nothing else is.
const bridgeName = "br0"

// A Driver is network.Driver.
type Driver struct{ *network.Keeper }

// New returns the driver for networks in dir, Networks' directory.
func New(dir string) (*Driver, error) {
	k, err := network.NewKeeper(dir, network.UsernsDriver)
	if err != nil {
		return nil, err
	}
	return &Driver{k}, nil
}

// Name is Driver's.
func (d *Driver) Name() string { return network.UsernsDriver }

// Up is Driver's: the den-net makes all of it, and it goes with the den-net.
func (d *Driver) Up(ctx context.Context, n *network.Network) error { return d.Start(ctx, n) }

// Down is Driver's.
func (d *Driver) Down(ctx context.Context, n *network.Network) error { return d.Stop(ctx, n) }

// NewSpace is Driver's.
func (d *Driver) NewSpace(context.Context, string) (network.Space, error) {
	return network.NewKernelSpace()
}

// OpenSpace is Driver's.
func (d *Driver) OpenSpace(_ context.Context, _ string, pid int) (network.Space, error) {
	return network.OpenKernelSpace(pid)
}

// Connect is Driver's.
func (d *Driver) Connect(ctx context.Context, s network.Space, n *network.Network, e *network.Endpoint, gateway bool) error {
	ns, err := d.Namespace(ctx, n)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return network.PlugPair(ns, bridgeName, s.Namespace(), n, e, gateway)
}

// Disconnect is Driver's. Without a den-net there is no bridge, and so no device.
func (d *Driver) Disconnect(ctx context.Context, _ network.Space, n *network.Network, e *network.Endpoint) error {
	if !d.Alive(n) {
		return nil
	}
	ns, err := d.Namespace(ctx, n)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return network.In(ns, func() error { return network.Unplug(e) })
}

// Link is this driver's part of a den-net.
func Link() network.Link { return network.Link{Driver: network.UsernsDriver, Open: open} }

// A side is a bridge in a namespace, the gateway on it, and the kernel's way to containers.
type side struct {
	*gateway.Gateway
	ns      *os.File
	packet  int
	direct  *direct // nil where the kernel does not allow it
	streams *network.Streams
}

// open makes the namespace, the bridge and the gateway of n.
func open(_ context.Context, _ string, n *network.Network) (network.Side, error) {
	ns, err := network.NewNamespace()
	if err != nil {
		return nil, err
	}
	s := &side{ns: ns, packet: -1, streams: network.NewStreams()}
	var index int
	err = network.In(ns, func() error {
		if index, err = addBridge(n); err != nil {
			return fmt.Errorf("bridge of network %s: %w", n.Name, err)
		}
		// The descriptor stays in the namespace; the thread does not come back.
		s.packet, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		return nil
	})
	if err == nil {
		if s.direct, err = openDirect(ns, n, index, s.packet); err != nil {
			log.Printf("published ports go through user space: %v", err)
		}
		err = s.startGateway(n, index)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *side) startGateway(n *network.Network, index int) error {
	link, err := gateway.PacketLink(s.packet, index, bridgeMAC(n), n.MTU)
	if err != nil {
		return err
	}
	c := gateway.Config{Internal: n.Internal, HostLoopback: !n.NoHostLoopback}
	for _, sub := range n.Subnets {
		if sub.Gateway.IsValid() {
			c.Addresses = append(c.Addresses, netip.PrefixFrom(sub.Gateway, sub.Prefix.Bits()))
		}
	}
	if s.direct != nil {
		c.LocalPorts = [2]uint16{minLocalPort, s.direct.ports.first - 1}
	}
	s.Gateway, err = gateway.New(c, link)
	return err
}

// minLocalPort is the first of the gateway's own local ports: those from minLocalPort to the
// kernel's are its.
const minLocalPort = 16000

// Publish is Side's. Where the kernel cannot carry it, the gateway does.
func (s *side) Publish(l *net.TCPListener, to netip.AddrPort) (io.Closer, error) {
	if s.direct == nil {
		return s.Gateway.Publish(l, to)
	}
	if err := s.direct.add(to); err != nil {
		if !errors.Is(err, errDirect) {
			log.Print(err)
		}
		return s.Gateway.Publish(l, to)
	}
	port := s.streams.Publish(l, to.Addr(), func(ctx context.Context, client netip.Addr) (network.Stream, error) { return s.dial(ctx, client, to) })
	return &publication{port, s.direct, to}, nil
}

// dial connects to a container for a client.
func (s *side) dial(ctx context.Context, client netip.Addr, to netip.AddrPort) (network.Stream, error) {
	c, err := s.direct.dial(ctx, s.Source(client, to.Addr()), to)
	if err == nil {
		return c, nil
	}
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil, err
	}
	// The kernel's local ports are all in use, or wait.
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	g, err := s.Dial(ctx, client, to)
	if err != nil {
		return nil, err
	}
	return g.(network.Stream), nil
}

// A publication is a port that leads to a container by the kernel.
type publication struct {
	port   io.Closer
	direct *direct
	to     netip.AddrPort
}

func (p *publication) Close() error { return errors.Join(p.port.Close(), p.direct.remove(p.to)) }

// addBridge makes the bridge in the present namespace. It has no address there: the
// kernel would answer besides the gateway.
func addBridge(n *network.Network) (index int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = bridgeName, n.MTU, bridgeMAC(n)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return 0, err
	}
	link, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return 0, err
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE; a kernel without IPv6 gives no address anyway
	_ = netlink.LinkSetIP6AddrGenMode(link, none)
	return link.Attrs().Index, netlink.LinkSetUp(link)
}

// bridgeMAC is as good as random, and the same after every start, so that containers
// find the gateway of a new den-net where the old one was.
func bridgeMAC(n *network.Network) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	_, _ = fmt.Sscanf(n.ID[:8], "%02x%02x%02x%02x", &mac[2], &mac[3], &mac[4], &mac[5])
	return mac
}

// Namespace is Side's.
func (s *side) Namespace() *os.File { return s.ns }

// Close is Side's: with the namespace the bridge goes, and every pair on it.
func (s *side) Close() error {
	var err error
	if s.Gateway != nil {
		err = s.Gateway.Close()
	}
	if s.direct != nil {
		s.direct.close()
	}
	if s.packet >= 0 {
		err = errors.Join(err, unix.Close(s.packet))
	}
	return errors.Join(err, s.ns.Close())
}
