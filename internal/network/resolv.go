package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// maxResolv is more than any resolv.conf, in bytes.
const maxResolv = 64 << 10

// A Resolv is what a resolv.conf says, as far as den needs to know.
type Resolv struct {
	Servers []netip.Addr
	Search  []string
	Options []string
}

// ParseResolv reads a resolv.conf (resolv.conf(5)). Lines that it does not
// understand count for nothing, as for libc.
func ParseResolv(r io.Reader) Resolv {
	var c Resolv
	lines := bufio.NewScanner(io.LimitReader(r, maxResolv))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(c.Servers) < 8 {
				c.Servers = append(c.Servers, a)
			}
		case "search", "domain": // the last one counts
			c.Search = slices.Clone(f[1:])
		case "options":
			c.Options = append(c.Options, f[1:]...)
		}
	}
	return c
}

// ReadResolv is ParseResolv of a file; one that is not there says nothing.
func ReadResolv(path string) (Resolv, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return Resolv{}, nil
	}
	if err != nil {
		return Resolv{}, err
	}
	defer func() { _ = f.Close() }()
	return ParseResolv(f), nil
}

// Resolv is what the resolv.conf of a container with these endpoints says, where
// want is what the container asks for itself (--dns, --dns-search, --dns-opt).
// Its servers, where a den answers, are told to that one by EndpointRequest.DNS.
func (ns *Networks) Resolv(ctx context.Context, es []Endpoint, want Resolv) (string, error) {
	outer, err := ReadResolv(ns.o.OuterResolv)
	if err != nil {
		return "", fmt.Errorf("outer resolv.conf: %w", err)
	}
	c := Resolv{
		Servers: firstOf(want.Servers, ns.o.DNS, outer.Servers),
		Search:  firstOf(want.Search, ns.o.Search, outer.Search),
		Options: firstOf(want.Options, ns.o.ResolvOptions, outer.Options),
	}
	if len(es) == 0 {
		return c.String(), nil
	}
	a, err := ns.resolver(ctx, es, c.Servers)
	if err != nil {
		return "", err
	}
	if a.IsValid() {
		c.Servers = []netip.Addr{a}
		// Containers have short names: try them as they are before the search list, as docker does.
		if !slices.ContainsFunc(c.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			c.Options = append(slices.Clone(c.Options), "ndots:0")
		}
	}
	return c.String(), nil
}

// resolver is the den that answers these endpoints' questions, invalid if servers
// themselves can be asked. It is asked on the default network, too, where a
// server would not be what it is outside: a loopback address.
func (ns *Networks) resolver(ctx context.Context, es []Endpoint, servers []netip.Addr) (netip.Addr, error) {
	needed := len(servers) == 0 || slices.ContainsFunc(servers, netip.Addr.IsLoopback)
	var found netip.Addr
	for _, e := range es {
		n, err := ns.Network(ctx, e.Network)
		if err != nil {
			return netip.Addr{}, err
		}
		if a := ns.driver.Resolver(n); a.IsValid() {
			if !n.Default {
				return a, nil
			}
			if needed || len(e.Links) > 0 {
				found = a
			}
		}
	}
	return found, nil
}

// firstOf is the first list that says anything.
func firstOf[T any](lists ...[]T) []T {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// String is the text of a resolv.conf.
func (c Resolv) String() string {
	var b strings.Builder
	for _, a := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	// A single "." means none (docker's --dns-search=.).
	if search := slices.DeleteFunc(slices.Clone(c.Search), func(s string) bool { return s == "." }); len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.String()
}

// A Host is a line of a hosts file.
type Host struct {
	Addr  netip.Addr
	Names []string
}

// HostGateway is the word that stands for an address under which containers
// reach the outer container.
const HostGateway = "host-gateway"

// HostGateways are the addresses that HostGateway stands for; there may be none.
func (ns *Networks) HostGateways(ctx context.Context, es []Endpoint) ([]netip.Addr, error) {
	if len(ns.o.HostGateways) > 0 {
		return ns.o.HostGateways, nil
	}
	for _, e := range es {
		n, err := ns.Network(ctx, e.Network)
		if err != nil {
			return nil, err
		}
		if gs := n.Gateways(); !n.Internal && len(gs) > 0 {
			return gs[:1], nil
		}
	}
	return nil, nil
}

// Hosts is the /etc/hosts of a container with these endpoints: docker's lines,
// the container's own (--add-host), links of the default network, itself.
func (ns *Networks) Hosts(ctx context.Context, es []Endpoint, hostname, domain string, extra []Host) (string, error) {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, h := range extra {
		fmt.Fprintf(&b, "%s\t%s\n", h.Addr, strings.Join(h.Names, " "))
	}
	links, err := ns.links(ctx, es)
	if err != nil {
		return "", err
	}
	names := hostname
	if domain != "" {
		names = hostname + "." + domain + " " + hostname
	}
	for _, h := range links {
		fmt.Fprintf(&b, "%s\t%s\n", h.Addr, strings.Join(h.Names, " "))
	}
	for _, e := range es {
		for _, a := range e.addresses() {
			fmt.Fprintf(&b, "%s\t%s\n", a, names)
		}
	}
	return b.String(), nil
}

// links are the lines for what endpoints of the default network are linked to.
func (ns *Networks) links(ctx context.Context, es []Endpoint) ([]Host, error) {
	var hosts []Host
	for _, e := range es {
		n, err := ns.Network(ctx, e.Network)
		if err != nil {
			return nil, err
		}
		if !n.Default || len(e.Links) == 0 {
			continue
		}
		others, err := ReadEndpoints(ns.network(n.ID))
		if err != nil {
			return nil, err
		}
		for _, o := range others {
			var names []string
			for name, target := range e.Links {
				if target == o.Container && name != o.Name && name != short(o.Container) {
					names = append(names, name)
				}
			}
			if !slices.Contains(slices.Collect(maps.Values(e.Links)), o.Container) {
				continue
			}
			slices.Sort(names)
			for _, a := range o.addresses() {
				hosts = append(hosts, Host{a, append(names[:len(names):len(names)], short(o.Container), o.Name)})
			}
		}
	}
	return hosts, nil
}
