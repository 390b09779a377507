// Package guest is the network stack of a container that has one of its own, for
// tests and benchmarks: what a sandbox makes of an oci.Interface, without the sandbox.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"den/internal/oci"
)

// A Guest is a running stack with one device.
type Guest struct {
	stack *stack.Stack
	link  stack.LinkEndpoint
	fd    int
}

// New starts a stack on i. It duplicates i.Cable.
func New(i oci.Interface) (*Guest, error) {
	fd, err := unix.FcntlInt(i.Cable.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20) // the kernel gives what it allows
	g := &Guest{fd: fd, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})}
	if err := g.configure(i); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func (g *Guest) configure(i oci.Interface) error {
	link, err := fdbased.New(&fdbased.Options{
		FDs: []int{g.fd}, MTU: uint32(i.MTU), EthernetHeader: true, Address: tcpip.LinkAddress(i.MAC),
		PacketDispatchMode: fdbased.RecvMMsg, ProcessorsPerChannel: 1, RXChecksumOffload: true,
	})
	if err != nil {
		return err
	}
	g.link = link
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 256 << 10}
	g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive)
	if err := g.stack.CreateNIC(1, link); err != nil {
		return fmt.Errorf("guest: %v", err)
	}
	var routes []tcpip.Route
	for _, p := range i.Addresses {
		a := tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()}
		if err := g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: protocol(p.Addr()), AddressWithPrefix: a}, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("guest: address %s: %v", p, err)
		}
		routes = append(routes, tcpip.Route{Destination: a.Subnet(), NIC: 1})
	}
	for _, a := range i.Gateways {
		all := header.IPv4EmptySubnet
		if a.Is6() {
			all = header.IPv6EmptySubnet
		}
		routes = append(routes, tcpip.Route{Destination: all, Gateway: tcpip.AddrFromSlice(a.AsSlice()), NIC: 1})
	}
	g.stack.SetRouteTable(routes)
	return nil
}

// Close ends the stack.
func (g *Guest) Close() {
	if g.link != nil {
		g.link.Attach(nil) // first: Destroy waits for who reads the cable, with a lock that he may need
	}
	g.stack.Destroy()
	unix.Close(g.fd)
}

// Stack is the guest's, for what Guest has no method for.
func (g *Guest) Stack() *stack.Stack { return g.stack }

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{NIC: 1, Port: a.Port()}
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return f
}

// Dial connects to "tcp" or "udp" addresses. It fits net.Resolver.
func (g *Guest) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	to := full(a)
	if network[:3] == "udp" {
		return gonet.DialUDP(g.stack, nil, &to, protocol(a.Addr()))
	}
	return gonet.DialContextTCP(ctx, g.stack, to, protocol(a.Addr()))
}

// Listen accepts connections to a.
func (g *Guest) Listen(a netip.AddrPort) (net.Listener, error) {
	return gonet.ListenTCP(g.stack, full(a), protocol(a.Addr()))
}

// ListenPacket receives datagrams for a.
func (g *Guest) ListenPacket(a netip.AddrPort) (net.PacketConn, error) {
	at := full(a)
	return gonet.DialUDP(g.stack, &at, nil, protocol(a.Addr()))
}

// Ping sends an echo request and waits for the answer.
func (g *Guest) Ping(ctx context.Context, to netip.Addr) error {
	var wq waiter.Queue
	number, kind := icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	if to.Is6() {
		number, kind = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	}
	ep, terr := g.stack.NewEndpoint(number, protocol(to), &wq)
	if terr != nil {
		return errors.New(terr.String())
	}
	defer ep.Close()
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if terr := ep.Connect(full(netip.AddrPortFrom(to, 0))); terr != nil {
		return errors.New(terr.String())
	}
	msg := append([]byte{kind, 0, 0, 0, 0, 0, 0, 1}, "are you there?"...)
	if _, terr := ep.Write(bytes.NewReader(msg), tcpip.WriteOptions{}); terr != nil {
		return errors.New(terr.String())
	}
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
