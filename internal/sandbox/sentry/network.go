package sentry

import (
	"fmt"
	"net/netip"

	"gvisor.dev/gvisor/pkg/sentry/inet"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/socket/hostinet"
	"gvisor.dev/gvisor/pkg/sentry/socket/netfilter"
	"gvisor.dev/gvisor/pkg/sentry/socket/netstack"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/link/loopback"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/raw"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"den/internal/sandbox"
)

// newNetwork is the network namespace of the sandbox.
func (b *box) newNetwork(network string, clock tcpip.Clock) (*inet.Namespace, error) {
	switch network {
	case sandbox.NetworkHost:
		return inet.NewRootNamespace(hostinet.NewStack(), nil, b.userns), nil
	case sandbox.NetworkNone:
		c := &stackMaker{clock: clock, k: b.k}
		s, err := c.CreateStack()
		if err != nil {
			return nil, err
		}
		return inet.NewRootNamespace(s, c, b.userns), nil
	}
	return nil, fmt.Errorf("network %.40q: unknown", network)
}

// configureNetwork reads what a stack of the host needs to know of it, before the
// filter forbids to ask.
func configureNetwork(ns *inet.Namespace) error {
	s, ok := ns.Stack().(*hostinet.Stack)
	if !ok {
		return nil
	}
	if err := s.Configure(false); err != nil {
		return fmt.Errorf("network of the host: %w", err)
	}
	return nil
}

// stackMaker makes a network stack for each namespace: the sandbox's own, and those
// that a payload unshares.
type stackMaker struct {
	clock tcpip.Clock
	k     *kernel.Kernel
}

// CreateStack makes a stack with a loopback device.
func (m *stackMaker) CreateStack() (inet.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		Clock:              m.clock, HandleLocal: true, RawFactory: raw.EndpointFactory{}, DefaultIPTables: netfilter.DefaultLinuxTables,
	})
	sack, moderate, ttl := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true), tcpip.DefaultTTLOption(64)
	// Not more than the buffer of a cable holds that anybody can have (net.core.wmem_max
	// doubled): a stack drops what does not fit, and repairs two segments in 200 ms.
	window := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 256 << 10}
	for _, err := range []tcpip.Error{
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate),
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &window),
		s.SetNetworkProtocolOption(ipv4.ProtocolNumber, &ttl),
		s.SetNetworkProtocolOption(ipv6.ProtocolNumber, &ttl),
	} {
		if err != nil {
			return nil, fmt.Errorf("network stack: %v", err)
		}
	}
	own := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128")}
	if err := addDevice(s, s.NextNICID(), "lo", ethernet.New(loopback.New()), own); err != nil {
		return nil, err
	}
	return netstack.NewStack(s, m.k.UniqueID()), nil
}
