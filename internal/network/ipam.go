package network

import (
	"crypto/rand"
	"net"
	"net/netip"
)

// The addresses of a network are what its subnets allow less what its
// endpoints' records say: there is no other list that could be wrong.

// family is the subnet of n of version 4 or 6, or nil.
func (n *Network) family(v6 bool) *Subnet {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Addr().Is6() == v6 {
			return &n.Subnets[i]
		}
	}
	return nil
}

// Gateways are the addresses of the network's own side, one of each version that it has.
func (n *Network) Gateways() []netip.Addr {
	var as []netip.Addr
	for _, v6 := range []bool{false, true} {
		if s := n.family(v6); s != nil {
			as = append(as, s.Gateway)
		}
	}
	return as
}

// give chooses an address of s: want, if it is valid, else the lowest that is free.
func (s *Subnet) give(n *Network, want netip.Addr, taken map[netip.Addr]bool) (netip.Prefix, error) {
	if want.IsValid() {
		if !s.assignable(want) {
			return netip.Prefix{}, errInvalid("no configured subnet or ip-range contain the IP address %s", want)
		}
		if taken[want] || s.reserved(want) {
			return netip.Prefix{}, errAddressInUse()
		}
		return netip.PrefixFrom(want, s.Prefix.Bits()), nil
	}
	pool := s.Prefix
	if s.Range.IsValid() {
		pool = s.Range
	}
	// Every step but the last meets an address that somebody has, or one of the
	// subnet's own, so this ends after as many as there are.
	for a := pool.Masked().Addr(); a.IsValid() && pool.Contains(a); a = a.Next() {
		if s.assignable(a) && !s.reserved(a) && !taken[a] {
			return netip.PrefixFrom(a, s.Prefix.Bits()), nil
		}
	}
	return netip.Prefix{}, errNoAddress(n)
}

// assignable says that a is in the subnet and neither its own address nor its broadcast's.
func (s *Subnet) assignable(a netip.Addr) bool {
	if !s.Prefix.Contains(a) {
		return false
	}
	hosts := a.BitLen() - s.Prefix.Bits()
	if hosts < 2 {
		return true // RFC 3021: both addresses of a /31 are hosts
	}
	return a != s.Prefix.Masked().Addr() && (a.Is6() || a != last(s.Prefix))
}

func (s *Subnet) reserved(a netip.Addr) bool {
	if a == s.Gateway {
		return true
	}
	for _, aux := range s.Auxiliary {
		if a == aux {
			return true
		}
	}
	return false
}

// complete checks a subnet that a user named and chooses its gateway.
func (s *Subnet) complete() error {
	s.Prefix = s.Prefix.Masked()
	if s.Range.IsValid() {
		s.Range = s.Range.Masked()
		if !s.Prefix.Contains(s.Range.Addr()) || s.Range.Bits() < s.Prefix.Bits() {
			return errInvalid("invalid subnet %s: ip-range %s is not inside it", s.Prefix, s.Range)
		}
	}
	for name, a := range s.Auxiliary {
		if !s.Prefix.Contains(a) {
			return errInvalid("invalid subnet %s: auxiliary address %s (%s) is not inside it", s.Prefix, a, name)
		}
	}
	if s.Gateway.IsValid() {
		if !s.assignable(s.Gateway) {
			return errInvalid("invalid subnet %s: gateway %s is no address of a host in it", s.Prefix, s.Gateway)
		}
		return nil
	}
	first := Subnet{Prefix: s.Prefix, Range: s.Range, Auxiliary: s.Auxiliary}
	if s.Prefix.Addr().BitLen()-s.Prefix.Bits() < 1 {
		return errInvalid("invalid subnet %s: it has no room for a gateway and a container", s.Prefix)
	}
	p, err := first.give(&Network{}, netip.Addr{}, nil)
	if err != nil {
		return errInvalid("invalid subnet %s: it has no address left for the gateway", s.Prefix)
	}
	s.Gateway = p.Addr()
	return nil
}

// chooseMAC follows docker: 02:42 and the IPv4 address, so that a device that
// gets its address back keeps its neighbours' caches right; else random, local.
func chooseMAC(want net.HardwareAddr, v4 netip.Addr) (net.HardwareAddr, error) {
	if len(want) > 0 {
		if len(want) != 6 || want[0]&1 != 0 {
			return nil, errInvalid("invalid MAC address %s: want six bytes, and not a group's", want)
		}
		return want, nil
	}
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	if v4.IsValid() {
		copy(mac[2:], v4.AsSlice())
		return mac, nil
	}
	_, _ = rand.Read(mac[1:]) // never fails
	return mac, nil
}
