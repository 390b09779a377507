// Package gateway is the way out of a container network that has no kernel to
// route for it: one TCP/IP stack in user space (gVisor's netstack) on a link of
// the network, which turns what containers send into sockets of this process and
// connections to published ports into connections to containers.
//
// Rules that make it safe:
//
//   - It answers ARP and neighbour solicitations for its own addresses only, although
//     the stack itself would answer for every address (see guard).
//   - It forwards nothing that does not come from its own subnets, and nothing into them.
//   - It dials before it accepts: a port that is closed outside is closed inside.
//   - Every table is bounded, every flow ends.
//
// docs/design/network.md tells what was measured.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"den/internal/network/datagram"
	"den/internal/network/share"
)

// A Config says what a gateway is and what it lets through.
type Config struct {
	// Addresses are the gateway's own, each with the length of its subnet's prefix. At
	// most one of each family is usual, any number works.
	Addresses []netip.Prefix
	// Internal forwards nothing outside. Own addresses still answer, ports can be published.
	Internal bool
	// HostLoopback leads connections to the gateway's own addresses (docker's host-gateway),
	// where nothing listens in the stack itself, to the loopback address of this process's
	// network namespace. Without it they lead to another address of it, where those answer
	// that listen on every address: what a gateway that is the kernel's leads to.
	HostLoopback bool
	// Refused, if not nil, says which further addresses are not for containers, such as
	// those of other networks. It is asked for every new flow.
	Refused func(netip.Addr) bool
	// LocalPorts, if not zero, are the first and the last of those that connections to
	// containers come from, where others belong to somebody else.
	LocalPorts [2]uint16

	interfaces func() ([]net.Addr, error) // net.InterfaceAddrs
}

// The bounds of a gateway's tables, which containers share (see share).
const (
	maxTCP      = 4096 // connections
	maxDials    = 1024 // of them, those that are being dialled outside
	maxPings    = 128  // echo requests without an answer
	dialTimeout = 30 * time.Second
	// maxRequests bounds the connections that the stack asks what to do with; the answer
	// about one that is not dialled comes at once.
	maxRequests = 2 * maxDials
)

// windowBytes bounds what a container sends before it is acknowledged, and what waits for it. The buffers that
// anybody can have for a socket (net.core.wmem_max, 212992, doubled) hold as much in frames of 1500 bytes.
const windowBytes = 256 << 10

// nic is the stack's only network device.
const nic tcpip.NICID = 1

// A Gateway is a running stack. It ends with Close.
type Gateway struct {
	stack *stack.Stack
	guard *guard
	c     Config
	dial  func(ctx context.Context, network, address string) (net.Conn, error)

	tcp, dials, pings *share.Slots[netip.Addr] // by container
	outward           *datagram.Flows[flowKey]
	buffers           datagram.Buffers

	mu     sync.Mutex
	open   map[io.Closer]struct{} // nil once closed
	worker sync.WaitGroup
}

// New starts a gateway on link, which carries Ethernet frames and has the gateway's MAC
// address; from then on the gateway owns it. Close of a link that only wraps a
// descriptor does not close the descriptor.
func New(c Config, link stack.LinkEndpoint) (*Gateway, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	c.interfaces = net.InterfaceAddrs
	var d net.Dialer
	g := &Gateway{
		stack: s, guard: newGuard(link, c.Addresses), c: c, dial: d.DialContext, open: map[io.Closer]struct{}{},
		tcp: share.New[netip.Addr](maxTCP), dials: share.New[netip.Addr](maxDials), pings: share.New[netip.Addr](maxPings),
		outward: datagram.NewFlows[flowKey](datagram.MaxFlows, datagram.Idle),
	}
	if err := g.configure(); err != nil {
		g.guard.close()
		s.Destroy()
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return g, nil
}

func (g *Gateway) configure() error {
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.stack, 0, maxRequests, g.forwardTCP).HandlePacket)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(g.stack, g.forwardUDP).HandlePacket)
	g.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, g.echo4)
	g.stack.SetTransportProtocolHandler(icmp.ProtocolNumber6, g.echo6)
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	// Not more than a cable's buffer holds: a stack of a sandbox drops what does not fit,
	// and needs 200 ms for each two segments to repair that.
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: windowBytes, Max: windowBytes}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: windowBytes, Max: windowBytes}
	ttl := tcpip.DefaultTTLOption(64)
	for _, err := range []tcpip.Error{
		g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate),
		g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive),
		g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send),
		g.stack.SetNetworkProtocolOption(ipv4.ProtocolNumber, &ttl),
		g.stack.SetNetworkProtocolOption(ipv6.ProtocolNumber, &ttl),
		g.stack.CreateNIC(nic, g.guard), // from here on packets come in
		// Promiscuous: packets for any address come up to the forwarders. Spoofing: they
		// are answered from that address.
		g.stack.SetPromiscuousMode(nic, true),
		g.stack.SetSpoofing(nic, true),
	} {
		if err != nil {
			return fmt.Errorf("stack: %v", err)
		}
	}
	if ports := g.c.LocalPorts; ports != [2]uint16{} {
		if err := g.stack.SetPortRange(ports[0], ports[1]); err != nil {
			return fmt.Errorf("local ports from %d to %d: %v", ports[0], ports[1], err)
		}
	}
	for _, p := range g.c.Addresses {
		if err := g.stack.AddProtocolAddress(nic, protocolAddress(p), stack.AddressProperties{}); err != nil {
			return fmt.Errorf("address %s: %v", p, err)
		}
	}
	return nil
}

// Close ends every flow, every publication and the stack, and waits for them.
func (g *Gateway) Close() error {
	g.mu.Lock()
	open := g.open
	g.open = nil
	g.mu.Unlock()
	for c := range open {
		c.Close()
	}
	g.outward.Close()
	g.worker.Wait()
	g.guard.close()
	g.stack.Destroy()
	return nil
}

// errClosed is what a gateway answers after Close.
var errClosed = errors.New("gateway: closed")

// hold makes Close close c; forget is called when c needs that no more. After Close
// it closes c itself and returns errClosed.
func (g *Gateway) hold(c io.Closer) error {
	g.mu.Lock()
	closed := g.open == nil
	if !closed {
		g.open[c] = struct{}{}
	}
	g.mu.Unlock()
	if closed { // not under the lock: c may call forget
		c.Close()
		return errClosed
	}
	return nil
}

func (g *Gateway) forget(c io.Closer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, c)
}

// canceler is a context's end as something to close.
type canceler struct{ cancel context.CancelFunc }

func (c *canceler) Close() error {
	c.cancel()
	return nil
}

// dialContext is the context of one dial, which ends with the gateway, too.
func (g *Gateway) dialContext() (context.Context, func(), error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	c := &canceler{cancel}
	if err := g.hold(c); err != nil {
		return nil, nil, err
	}
	return ctx, func() { g.forget(c); cancel() }, nil
}

// goes runs f as a goroutine that Close waits for.
func (g *Gateway) goes(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		return false
	}
	g.worker.Go(f)
	return true
}

// own reports whether a is one of the gateway's addresses.
func (c *Config) own(a netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// metadata reports whether a is where a cloud gives away the credentials of the machine, besides
// link-local addresses.
func metadata(a netip.Addr) bool {
	switch a.String() {
	case "fd00:ec2::254", // AWS: EC2 User Guide, "Access instance metadata"
		"fd20:ce::254",       // Google: Compute Engine, "Query VM metadata"
		"fd00:c1::a9fe:a9fe", // Oracle: "Getting Instance Metadata"
		"100.100.100.200":    // Alibaba: ECS, "Obtain instance metadata"
		return true
	}
	return false
}

// outside is where a flow of a container to a leads, if anywhere.
func (c *Config) outside(a netip.Addr) (netip.Addr, bool) {
	switch {
	case c.Internal:
		return netip.Addr{}, false
	case c.own(a):
		return c.host(a.Is4())
	case !a.IsValid(), a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, false
	case a.Is4() && a.As4()[0] == 0, a.Is4In6(): // the kernel takes both for this host
		return netip.Addr{}, false
	case a.IsLinkLocalUnicast(), metadata(a):
		return netip.Addr{}, false
	case slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(a) }):
		return netip.Addr{}, false
	case c.Refused != nil && c.Refused(a):
		return netip.Addr{}, false
	}
	return a, true
}

// host is the address of this process's network namespace that the gateway's own stand for.
func (c *Config) host(is4 bool) (netip.Addr, bool) {
	switch {
	case c.HostLoopback && is4:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	case c.HostLoopback:
		return netip.IPv6Loopback(), true
	}
	all, err := c.interfaces()
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if h, _ := netip.AddrFromSlice(n.IP); h.Unmap().Is4() == is4 && h.IsGlobalUnicast() {
				return h.Unmap(), true
			}
		}
	}
	return netip.Addr{}, false // a namespace that leads nowhere
}
