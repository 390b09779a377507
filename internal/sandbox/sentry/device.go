package sentry

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/socket/netstack"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"den/internal/oci"
)

// A device is an oci.Interface for the sentry.
type device struct {
	Name      string
	MAC       net.HardwareAddr
	MTU       int
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	FD        int
}

const (
	// minMTU is what IPv4 asks for (RFC 791), maxMTU what a device of the sentry can read.
	minMTU, maxMTU = 68, 65535
	// maxDeviceName is the kernel's, without its zero (IFNAMSIZ).
	maxDeviceName = 15
	// cableBytes is asked for the buffer of what a sandbox sends: what does not fit is dropped.
	cableBytes = 4 << 20
)

// deviceOf checks i, and makes its cable wide enough.
func deviceOf(i oci.Interface, fd int) (device, error) {
	d := device{i.Name, i.MAC, i.MTU, i.Addresses, i.Gateways, fd}
	switch {
	case i.Name == "" || len(i.Name) > maxDeviceName || i.Name == "lo":
		return d, fmt.Errorf("network device %.40q: not a name for a device: %w", i.Name, errdefs.ErrInvalidArgument)
	case len(i.MAC) != header.EthernetAddressSize || i.MAC[0]&1 != 0:
		return d, fmt.Errorf("network device %s: hardware address %s: %w", i.Name, i.MAC, errdefs.ErrInvalidArgument)
	case i.MTU < minMTU || i.MTU > maxMTU:
		return d, fmt.Errorf("network device %s: MTU %d: %w", i.Name, i.MTU, errdefs.ErrInvalidArgument)
	case i.Cable == nil:
		return d, fmt.Errorf("network device %s: no cable: %w", i.Name, errdefs.ErrInvalidArgument)
	}
	for _, p := range i.Addresses {
		if !p.IsValid() {
			return d, fmt.Errorf("network device %s: an invalid address: %w", i.Name, errdefs.ErrInvalidArgument)
		}
	}
	conn, err := i.Cable.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, cableBytes) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, cableBytes) // a smaller one works
			}
		})
	}
	if err != nil {
		return d, fmt.Errorf("network device %s: %w", i.Name, err)
	}
	return d, nil
}

// netStack is the sandbox's own network stack.
func (b *box) netStack() (*stack.Stack, error) {
	s, ok := b.k.RootNetworkNamespace().Stack().(*netstack.Stack)
	if !ok {
		return nil, &remoteError{"the sandbox shares the outer container's network", unix.EOPNOTSUPP}
	}
	return s.Stack, nil
}

// plug adds a device, which reads and writes frames on a socket of files.
func (b *box) plug(d *device, files descriptors) (err error) {
	s, err := b.netStack()
	if err != nil {
		return err
	}
	fd, err := files.take(d.FD)
	if err != nil {
		return err
	}
	b.netMu.Lock()
	defer b.netMu.Unlock()
	// The filter of system calls allows nothing that would look at the socket or set it up.
	reader, err := fdbased.New(&fdbased.Options{
		FDs: []int{fd}, MTU: uint32(d.MTU), EthernetHeader: true, Address: tcpip.LinkAddress(d.MAC),
		PacketDispatchMode: fdbased.RecvMMsg, ProcessorsPerChannel: 1,
		RXChecksumOffload: true, // it crossed no wire
		PreConfigured:     true, IsPacketSocket: []bool{false},
	})
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("network device %s: %w", d.Name, err)
	}
	link := socketLink{reader}
	addresses := d.Addresses
	for _, p := range d.Addresses {
		if p.Addr().Is6() { // and what neighbours are found from
			local := netip.AddrFrom16(header.LinkLocalAddr(tcpip.LinkAddress(d.MAC)).As16())
			addresses = append(addresses[:len(addresses):len(addresses)], netip.PrefixFrom(local, 64))
			break
		}
	}
	id := s.NextNICID()
	if err := addDevice(s, id, d.Name, link, addresses); err != nil {
		_ = s.RemoveNIC(id) // it may be there
		link.Wait()
		_ = unix.Close(fd)
		return err
	}
	for _, g := range d.Gateways {
		all := header.IPv4EmptySubnet
		if g.Is6() {
			all = header.IPv6EmptySubnet
		}
		s.AddRoute(tcpip.Route{Destination: all, Gateway: tcpip.AddrFromSlice(g.AsSlice()), NIC: id, MTU: uint32(d.MTU)})
	}
	if b.cables == nil {
		b.cables = map[string]cable{}
	}
	b.cables[d.Name] = cable{id, link, fd}
	return nil
}

// A cable is the socket of a device.
type cable struct {
	id   tcpip.NICID
	link socketLink
	fd   int
}

// A socketLink is what reads and writes a device's socket. A stack that loses a device, by
// whatever way, waits with its lock in hand for who reads, who may need that lock to answer
// what he has read; so the stack is not made to wait.
type socketLink struct{ stack.LinkEndpoint }

// Attach is stack.LinkEndpoint's. With nil it returns before nobody reads any more.
func (l socketLink) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		go l.LinkEndpoint.Attach(nil)
		return
	}
	l.LinkEndpoint.Attach(d)
}

// unplug takes a device away, and its routes.
func (b *box) unplug(name string) error {
	s, err := b.netStack()
	if err != nil {
		return err
	}
	b.netMu.Lock()
	defer b.netMu.Unlock()
	c, ok := b.cables[name]
	if !ok {
		return &os.PathError{Op: "unplug", Path: name, Err: unix.ENODEV}
	}
	delete(b.cables, name)
	_ = s.RemoveNIC(c.id) // the payload may have been quicker
	c.link.Wait()         // until nobody reads the socket any more
	return unix.Close(c.fd)
}

// unplugAll takes all devices away: what stays in the machine when its first box has ended is the loopback device.
func (b *box) unplugAll() {
	b.netMu.Lock()
	names := slices.Collect(maps.Keys(b.cables))
	b.netMu.Unlock()
	for _, name := range names {
		_ = b.unplug(name) // den may have been quicker
	}
}

// addDevice adds a network device with addresses and a route to each of their networks.
func addDevice(s *stack.Stack, id tcpip.NICID, name string, ep stack.LinkEndpoint, addresses []netip.Prefix) error {
	if err := s.CreateNICWithOptions(id, ep, stack.NICOptions{Name: name, DeliverLinkPackets: true}); err != nil {
		if _, ok := err.(*tcpip.ErrDuplicateNICID); ok {
			return &os.PathError{Op: "plug", Path: name, Err: unix.EEXIST}
		}
		return fmt.Errorf("network device %s: %v", name, err)
	}
	for _, p := range addresses {
		protocol := ipv4.ProtocolNumber
		if p.Addr().Is6() {
			protocol = ipv6.ProtocolNumber
		}
		address := tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()}
		if err := s.AddProtocolAddress(id, tcpip.ProtocolAddress{Protocol: protocol, AddressWithPrefix: address}, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("network device %s: address %s: %v", name, p, err)
		}
		s.AddRoute(tcpip.Route{Destination: address.Subnet(), NIC: id})
	}
	return nil
}
