package network

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Pool is a range that subnets of Size bits are cut from.
type Pool struct {
	Base netip.Prefix
	Size int
}

// DefaultPools are docker's: 15 subnets of 65536 addresses, 16 of 4096.
func DefaultPools() []Pool {
	return []Pool{
		{netip.MustParsePrefix("172.17.0.0/16"), 16},
		{netip.MustParsePrefix("172.18.0.0/16"), 16},
		{netip.MustParsePrefix("172.19.0.0/16"), 16},
		{netip.MustParsePrefix("172.20.0.0/14"), 16},
		{netip.MustParsePrefix("172.24.0.0/14"), 16},
		{netip.MustParsePrefix("172.28.0.0/14"), 16},
		{netip.MustParsePrefix("192.168.0.0/16"), 20},
	}
}

// ParsePool reads dockerd's --default-address-pool: base=CIDR,size=BITS.
func ParsePool(text string) (Pool, error) {
	var p Pool
	for field := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch strings.TrimSpace(key) {
		case "base":
			p.Base, err = netip.ParsePrefix(strings.TrimSpace(value))
		case "size":
			p.Size, err = strconv.Atoi(strings.TrimSpace(value))
		default:
			err = fmt.Errorf("unknown field %q", key)
		}
		if err != nil {
			return Pool{}, errInvalid("invalid default address pool %q: %v; want base=10.10.0.0/16,size=24", text, err)
		}
	}
	if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen()-2 {
		return Pool{}, errInvalid("invalid default address pool %q: want base=10.10.0.0/16,size=24, the size not smaller than the base's", text)
	}
	p.Base = p.Base.Masked()
	return p, nil
}

// choosePool returns the first subnet of the pools that overlaps none of used.
func choosePool(pools []Pool, used []netip.Prefix, v6 bool) (netip.Prefix, error) {
	for _, p := range pools {
		if p.Base.Addr().Is6() != v6 || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			continue
		}
		sub := netip.PrefixFrom(p.Base.Masked().Addr(), p.Size)
		for sub.IsValid() && p.Base.Contains(sub.Addr()) {
			i := slices.IndexFunc(used, sub.Overlaps)
			if i < 0 {
				return sub, nil
			}
			// The next subnet after all that is in the way.
			sub = next(netip.PrefixFrom(sub.Addr(), min(sub.Bits(), used[i].Bits())), p.Size)
		}
	}
	return netip.Prefix{}, errPoolsUsedUp()
}

// next is the first subnet of size bits after the end of p; invalid at the end of all addresses.
func next(p netip.Prefix, size int) netip.Prefix {
	a := last(p).Next()
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, size)
}

// last is the last address of p, its broadcast address if it is of version 4.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		host := max(0, min(8, (i+1)*8-p.Bits()))
		b[i] |= byte(1<<host - 1)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// localPool is a /64 of a unique local prefix (RFC 4193) with a random global id.
func localPool() Pool {
	b := [16]byte{0: 0xfd}
	_, _ = rand.Read(b[1:6]) // never fails
	return Pool{netip.PrefixFrom(netip.AddrFrom16(b), 48), 64}
}

// prefix converts a route's destination; none means everything.
func prefix(n *net.IPNet, family int) (netip.Prefix, bool) {
	if n == nil {
		a := netip.IPv4Unspecified()
		if family == unix.AF_INET6 {
			a = netip.IPv6Unspecified()
		}
		return netip.PrefixFrom(a, 0), true
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), true
}
