package dockerapi

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"

	"den/internal/engine"
	"den/internal/network"
)

// networkOf is what inspect says of networks.
func networkOf(c *engine.Container, v version) *inspectedNetwork {
	out := &inspectedNetwork{NetworkSettings: &container.NetworkSettings{
		Ports:    portMap(c),
		Networks: endpointSettings(c, v),
	}}
	if c.State.Running {
		out.SandboxID = c.ID
		if c.State.Pid > 0 {
			out.SandboxKey = "/proc/" + strconv.Itoa(c.State.Pid) + "/ns/net"
		}
	}
	if v >= 52 {
		return out
	}
	out.legacyNetwork = &legacyNetwork{}
	for i := range c.Networks {
		if e := &c.Networks[i]; e.NetworkName == apinet.NetworkBridge {
			l := out.legacyNetwork
			l.EndpointID, l.MacAddress = e.ID, e.MAC
			l.IPAddress, l.IPPrefixLen = address(e.IPv4)
			l.GlobalIPv6Address, l.GlobalIPv6PrefixLen = address(e.IPv6)
			l.Gateway, l.IPv6Gateway = e.Gateway4, e.Gateway6
			if e.ID == "" {
				l.Gateway, l.IPv6Gateway = "", ""
			}
		}
	}
	return out
}

// address is a prefix's address and length; "" and 0 if it is none.
func address(p netip.Prefix) (string, int) {
	if !p.IsValid() {
		return "", 0
	}
	return p.Addr().String(), p.Bits()
}

// endpointSettings are a container's networks, as asked for and, while it runs, as they are.
func endpointSettings(c *engine.Container, v version) map[string]*apinet.EndpointSettings {
	out := map[string]*apinet.EndpointSettings{}
	for i := range c.Networks {
		e := &c.Networks[i]
		s := &apinet.EndpointSettings{NetworkID: e.Network, Aliases: e.Request.Aliases, DNSNames: dnsNames(c, e)}
		if e.Request.IPv4.IsValid() || e.Request.IPv6.IsValid() {
			s.IPAMConfig = &apinet.EndpointIPAMConfig{IPv4Address: e.Request.IPv4, IPv6Address: e.Request.IPv6}
		}
		for alias, target := range e.Request.Links {
			s.Links = append(s.Links, target+":"+alias)
		}
		if v < 45 && e.NetworkName != apinet.NetworkBridge {
			s.Aliases = append(append([]string{}, s.Aliases...), c.ID[:min(12, len(c.ID))])
		}
		if e.ID != "" {
			s.EndpointID = e.ID
			s.IPAddress, s.IPPrefixLen = e.IPv4.Addr(), max(0, e.IPv4.Bits())
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = e.IPv6.Addr(), max(0, e.IPv6.Bits())
			s.Gateway, s.IPv6Gateway = parseAddr(e.Gateway4), parseAddr(e.Gateway6)
			_ = s.MacAddress.UnmarshalText([]byte(e.MAC)) // den's own words
		}
		out[e.NetworkName] = s
	}
	return out
}

func parseAddr(s string) netip.Addr {
	a, _ := netip.ParseAddr(s) // invalid is none
	return a
}

// dnsNames are what resolves to the container in a network that is not the default one.
func dnsNames(c *engine.Container, e *engine.NetworkEndpoint) []string {
	if e.NetworkName == apinet.NetworkBridge {
		return nil
	}
	names := []string{c.Name}
	for _, n := range append(append([]string{}, e.Request.Aliases...), c.ID[:min(12, len(c.ID))]) {
		if n != "" && !slices.ContainsFunc(names, func(have string) bool { return strings.EqualFold(have, n) }) {
			names = append(names, n)
		}
	}
	return names
}

// portMap are the ports of a running container: those that are exposed and, where
// they are published, where.
func portMap(c *engine.Container) apinet.PortMap {
	out := apinet.PortMap{}
	if !c.State.Running || container.NetworkMode(c.NetworkMode).IsHost() || container.NetworkMode(c.NetworkMode).IsNone() {
		return out
	}
	for p := range configOf(c, doorOf(c).Config).ExposedPorts {
		out[p] = nil
	}
	for i := range c.Networks {
		for _, p := range c.Networks[i].Ports {
			port, ok := apinet.PortFrom(p.Container, apinet.IPProtocol(p.Protocol))
			if !ok {
				continue
			}
			for _, ip := range hostIPs(p) {
				b := apinet.PortBinding{HostIP: ip, HostPort: strconv.Itoa(int(p.Host))}
				if !slices.Contains(out[port], b) {
					out[port] = append(out[port], b)
				}
			}
		}
	}
	return out
}

// hostIPs are the addresses that a port is published on: docker names both families'
// unspecified ones.
func hostIPs(p network.Port) []netip.Addr {
	if p.HostIP.IsValid() {
		return []netip.Addr{p.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}
