package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"den/internal/oci"
)

// A Bridge is the driver of the rung privileged: kernel bridges in the outer network
// namespace, veth pairs into the containers', nftables between networks and to
// the outside, den-net for names and ports. What it makes there carries den's name:
// devices den-<id> and denv<id>, tables den_<id>.
type Bridge struct {
	*Keeper
	// unplugging is read-locked while devices of containers that have ended are being removed.
	unplugging sync.RWMutex
}

// NewBridge returns the driver for networks in dir, Networks' directory.
func NewBridge(dir string) (*Bridge, error) {
	k, err := NewKeeper(dir, BridgeDriver)
	if err != nil {
		return nil, err
	}
	return &Bridge{Keeper: k}, nil
}

// Name is Driver's.
func (b *Bridge) Name() string { return BridgeDriver }

// Up is Driver's.
func (b *Bridge) Up(ctx context.Context, n *Network) error {
	if err := upBridge(n); err != nil {
		return fmt.Errorf("bridge %s: %w", bridgeName(n), err)
	}
	if !n.Internal {
		if err := allowForwarding(n); err != nil {
			return err
		}
	}
	// A table is whole or not there, and a change of one costs the kernel some
	// milliseconds of waiting for all processors.
	there, err := hasRules(n)
	if err != nil {
		return err
	}
	if !there {
		if err := b.rules(n, nil, nil); err != nil {
			return err
		}
	}
	return b.Start(ctx, n)
}

// rules makes the rules of n those of its records, with one endpoint as it is about to
// be recorded, and without another that is about to go.
func (b *Bridge) rules(n *Network, with, without *Endpoint) error {
	es, err := ReadEndpoints(b.network(n))
	if err != nil {
		return err
	}
	es = slices.DeleteFunc(es, func(e Endpoint) bool {
		return with != nil && e.ID == with.ID || without != nil && e.ID == without.ID
	})
	if with != nil {
		es = append(es, *with)
	}
	return applyRules(n, es)
}

// Publish is Driver's: den-net has the ports, and the kernel leads past it who
// comes from elsewhere.
func (b *Bridge) Publish(ctx context.Context, n *Network, e *Endpoint) ([]Port, error) {
	ports, err := b.Keeper.Publish(ctx, n, e)
	if err != nil {
		return nil, err
	}
	assigned := *e
	assigned.Ports = ports
	return ports, b.rules(n, &assigned, nil)
}

// Withdraw is Driver's.
func (b *Bridge) Withdraw(ctx context.Context, n *Network, e *Endpoint) error {
	closed, err := b.withdraw(ctx, n, e)
	if len(e.Ports) == 0 && len(closed) == 0 {
		return err
	}
	return errors.Join(err, b.rules(n, nil, e))
}

// Down is Driver's.
func (b *Bridge) Down(ctx context.Context, n *Network) error {
	b.unplugging.Lock() // what goes on of that ends before
	defer b.unplugging.Unlock()
	if err := b.Stop(ctx, n); err != nil {
		return err
	}
	return downBridge(n)
}

// downBridge removes the rules and the bridge of n, which has no endpoints.
func downBridge(n *Network) error {
	if err := removeRules(n); err != nil {
		return err
	}
	link, err := netlink.LinkByName(bridgeName(n))
	if gone(err) {
		return nil
	}
	if err == nil && link.Attrs().Alias == alias(n) {
		err = netlink.LinkDel(link)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("remove bridge %s: %w", bridgeName(n), err)
	}
	return nil
}

// alias marks a bridge as that of n, of whatever name.
func alias(n *Network) string { return "den " + n.ID }

func gone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// upBridge makes the bridge, if it is not there, with its addresses.
func upBridge(n *Network) error {
	link, err := netlink.LinkByName(bridgeName(n))
	if gone(err) {
		link, err = addBridge(n)
	}
	if err != nil {
		return err
	}
	if link.Type() != "bridge" || link.Attrs().Alias != alias(n) {
		return errors.New("a device of that name is there already and not this network's; remove it, or name another one (com.docker.network.bridge.name)")
	}
	for _, s := range n.Subnets {
		if err := addAddress(link, netip.PrefixFrom(s.Gateway, s.Prefix.Bits())); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func addBridge(n *Network) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeName(n), n.MTU
	// A bridge without an address of its own takes its ports', and changes it with them.
	attrs.HardwareAddr = bridgeMAC(n)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(bridgeName(n))
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetAlias(link, alias(n)); err != nil {
		return nil, err
	}
	if n.family(true) == nil {
		noLinkLocal(link)
	}
	return netlink.LinkByName(bridgeName(n))
}

// bridgeMAC is as good as random, and the same after every start.
func bridgeMAC(n *Network) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	_, _ = fmt.Sscanf(n.ID[:8], "%02x%02x%02x%02x", &mac[2], &mac[3], &mac[4], &mac[5])
	return mac
}

// noLinkLocal keeps the kernel from giving a device an IPv6 address of its own
// accord. A kernel without IPv6 gives none anyway.
func noLinkLocal(link netlink.Link) {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	_ = netlink.LinkSetIP6AddrGenMode(link, none)
}

// addAddress gives a device an address that nobody else has: there is nothing to detect.
func addAddress(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	} else if p.Bits() < 31 {
		a.Broadcast = last(p).AsSlice()
	}
	if err := netlink.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// A kernelSpace is a network namespace.
type kernelSpace struct{ ns *os.File }

func (s *kernelSpace) Namespace() *os.File         { return s.ns }
func (s *kernelSpace) Interfaces() []oci.Interface { return nil }
func (s *kernelSpace) SetPlug(func(context.Context, oci.Interface) error, func(context.Context, string) error) {
}
func (s *kernelSpace) Close() error { return s.ns.Close() }

// NewSpace is Driver's.
func (b *Bridge) NewSpace(context.Context, string) (Space, error) { return NewKernelSpace() }

// NewKernelSpace makes the space of a container that has the kernel's network stack.
func NewKernelSpace() (Space, error) {
	ns, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	return &kernelSpace{ns}, nil
}

// OpenSpace is Driver's.
func (b *Bridge) OpenSpace(_ context.Context, _ string, pid int) (Space, error) {
	return OpenKernelSpace(pid)
}

// OpenKernelSpace is the space of the container whose payload's first process is pid.
func OpenKernelSpace(pid int) (Space, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	return &kernelSpace{ns}, nil
}

// vethName is the bridge's end of an endpoint's pair.
func vethName(e *Endpoint) string { return "denv" + e.ID[:11] }

// Connect is Driver's.
func (b *Bridge) Connect(_ context.Context, s Space, n *Network, e *Endpoint, gateway bool) error {
	bridge, err := netlink.LinkByName(bridgeName(n))
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridgeName(n), err)
	}
	if err := plug(bridge, s.Namespace(), n, e); err != nil {
		return fmt.Errorf("device %s: %w", e.Device, err)
	}
	var gateways []netip.Addr
	for _, a := range n.Gateways() {
		// Rather no route than one into the void: clients try IPv4 at once.
		if gateway && !n.Internal && (a.Is4() || forwards(forwarding6)) {
			gateways = append(gateways, a)
		}
	}
	return In(s.Namespace(), func() error { return configure(n, e, gateways) })
}

// PlugPair is the privileged half of Connect for a bridge in the namespace of another
// driver: a veth pair from there into the container's, configured.
func PlugPair(bridgeNS *os.File, bridge string, container *os.File, n *Network, e *Endpoint, gateway bool) error {
	err := In(bridgeNS, func() error {
		link, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return plug(link, container, n, e)
	})
	if err != nil {
		return fmt.Errorf("device %s: %w", e.Device, err)
	}
	var gateways []netip.Addr
	if gateway && !n.Internal {
		gateways = n.Gateways()
	}
	return In(container, func() error { return configure(n, e, gateways) })
}

// plug makes the endpoint's pair of devices, from the present namespace, the
// bridge's, into the container's. One that is there already is left alone.
func plug(bridge netlink.Link, container *os.File, n *Network, e *Endpoint) error {
	link, err := netlink.LinkByName(vethName(e))
	if gone(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = vethName(e), n.MTU, bridge.Attrs().Index
		pair := &netlink.Veth{
			LinkAttrs: attrs, PeerName: e.Device, PeerHardwareAddr: e.mac(), PeerNamespace: netlink.NsFd(int(container.Fd())),
		}
		if err = netlink.LinkAdd(pair); errors.Is(err, unix.EEXIST) {
			if err = In(container, func() error { return removeLost(e) }); err == nil {
				err = netlink.LinkAdd(pair)
			}
		}
		if err == nil {
			link, err = netlink.LinkByName(vethName(e))
		}
	}
	if err != nil {
		return err
	}
	if link.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := netlink.LinkSetMaster(link, bridge); err != nil { // of a bridge that was lost
			return err
		}
	}
	noLinkLocal(link)
	if n.Isolated {
		// In the bridge itself, because frames between its ports pass nftables only where
		// br_netfilter is loaded.
		if err := netlink.LinkSetIsolated(link, true); err != nil {
			return fmt.Errorf("isolate: %w", err)
		}
	}
	return netlink.LinkSetUp(link)
}

// removeLost removes the endpoint's device from the present namespace, the container's: the
// kernel takes its time to remove pairs of a bridge whose namespace is gone.
func removeLost(e *Endpoint) error {
	link, err := netlink.LinkByName(e.Device)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if link.Type() != "veth" || link.Attrs().HardwareAddr.String() != e.MAC {
		return fmt.Errorf("the container has a device of that name: %w", unix.EEXIST)
	}
	if err := netlink.LinkDel(link); err != nil && !gone(err) {
		return err
	}
	return nil
}

// configure gives the container's end its addresses and default routes, in its namespace.
func configure(n *Network, e *Endpoint, gateways []netip.Addr) error {
	link, err := netlink.LinkByName(e.Device)
	if err != nil {
		return fmt.Errorf("device %s: %w", e.Device, err)
	}
	if !e.IPv6.IsValid() {
		noLinkLocal(link)
	}
	if link.Attrs().MTU != n.MTU {
		if err := netlink.LinkSetMTU(link, n.MTU); err != nil {
			return fmt.Errorf("device %s: MTU %d: %w", e.Device, n.MTU, err)
		}
	}
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			if err := addAddress(link, p); err != nil {
				return fmt.Errorf("device %s: %w", e.Device, err)
			}
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("device %s: %w", e.Device, err)
	}
	for _, a := range gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: a.AsSlice()}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("default route by %s: %w", a, err)
		}
	}
	return nil
}

// Disconnect is Driver's. With one end of a pair the other vanishes; where the
// container's namespace is gone, both are.
func (b *Bridge) Disconnect(_ context.Context, s Space, _ *Network, e *Endpoint) error {
	if s != nil {
		return Unplug(e)
	}
	// The container has ended. Removing a device waits for all processors, and nobody waits for
	// that. The next container may have the same address at once, and the bridge must not send to
	// the old device what is for it.
	unlearn(e)
	b.unplugging.RLock()
	ended := *e
	go func() {
		defer b.unplugging.RUnlock()
		_ = Unplug(&ended) // it vanishes with the namespace anyway
	}()
	return nil
}

// unlearn has the bridge forget behind which device the endpoint's address is, and neither learn
// it again nor ask there where it is: a namespace whose programs have ended still refuses connections.
func unlearn(e *Endpoint) {
	link, err := netlink.LinkByName(vethName(e))
	if err != nil {
		return // it has vanished
	}
	_ = netlink.LinkSetLearning(link, false) // it vanishes at any time
	_ = netlink.LinkSetFlood(link, false)
	_ = netlink.NeighDel(&netlink.Neigh{ // it may not have been learned
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: e.mac(),
	})
}

// Unplug removes the endpoint's pair from the present namespace, the bridge's.
func Unplug(e *Endpoint) error {
	link, err := netlink.LinkByName(vethName(e))
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("remove device %s: %w", vethName(e), err)
	}
	return nil
}
