package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The names of the other drivers; BridgeDriver is this package's own.
const (
	// UsernsDriver has bridges in network namespaces of den's own, and a TCP/IP stack
	// in user space as the way out.
	UsernsDriver = "userns"
	// SwitchDriver joins sandboxes that have a stack of their own.
	SwitchDriver = "switch"
)

// Facts are what decides which driver works here; nil errors say yes.
type Facts struct {
	// OwnStack says that sandboxes of the rung in use have a network stack of their own.
	OwnStack bool
	// Namespaces is about making network namespaces, bridges and veth pairs.
	Namespaces error
	// Packets is about a packet socket in such a namespace, by which a bridge gets its
	// gateway in user space.
	Packets error
	// Rules is about nftables in the outer network namespace, Forwarding about routing there.
	Rules, Forwarding error
}

// A Choice is a driver and the reason for it. Without a driver there is the outer
// network and none.
type Choice struct {
	Driver, Why string
	// Better is the next better driver, BetterWhy why it does not work here; empty on the best.
	Better, BetterWhy string
}

// Probe tries what Facts are about. It leaves nothing behind.
func Probe() Facts {
	f := Facts{Rules: tryRules(), Forwarding: tryForwarding()}
	f.Namespaces, f.Packets = tryNamespace()
	return f
}

// Choose is the visible order: the kernel's own bridge and routing, a bridge with
// a gateway in user space, a switch in user space.
func Choose(f Facts) Choice {
	kernel := f.Rules
	reason := "the kernel cannot route for den"
	if kernel == nil {
		kernel, reason = f.Forwarding, "the kernel does not route"
	}
	switch {
	case f.OwnStack:
		return Choice{SwitchDriver, "sandboxes have network stacks of their own here: den switches frames between them", UsernsDriver, "the outer container allows no network namespaces"}
	case f.Namespaces != nil:
		return Choice{"", fmt.Sprintf("containers share the outer network: %v", f.Namespaces), UsernsDriver, f.Namespaces.Error()}
	case kernel != nil && f.Packets != nil:
		return Choice{"", fmt.Sprintf("containers share the outer network: %v", f.Packets), UsernsDriver, f.Packets.Error()}
	case kernel != nil:
		why := fmt.Sprintf("%s: %v", reason, kernel)
		return Choice{UsernsDriver, "bridges with a gateway in user space, because " + why, BridgeDriver, why}
	}
	return Choice{Driver: BridgeDriver, Why: "bridges of the kernel, nftables between them"}
}

// tryNamespace makes all that a bridged container needs, in a namespace that ends here, and
// a packet socket of the bridge.
func tryNamespace() (namespaces, packets error) {
	ns, err := NewNamespace()
	if err != nil {
		return err, err
	}
	err = In(ns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "den-probe"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		bridge, err := netlink.LinkByName("den-probe")
		if err != nil {
			return err
		}
		attrs = netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "denv-probe", bridge.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0"}); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		packets = tryPackets(bridge.Attrs().Index)
		return nil
	})
	return errors.Join(err, ns.Close()), packets
}

// tryPackets makes the socket by which the gateway of the driver userns gets its frames.
func tryPackets(index int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index})
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("packet socket of a bridge: %w", err)
	}
	return nil
}

// tryRules has the kernel check a network's rules, in a transaction that takes them
// back. They need not be the last word: who drops what is forwarded drops den's packets, too.
func tryRules() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	n := &Network{ID: "probe" + randomID()[5:], Subnets: []Subnet{
		{Prefix: netip.MustParsePrefix("192.0.2.0/24")}, {Prefix: netip.MustParsePrefix("2001:db8::/64")},
	}}
	planRules(c, n, []Endpoint{{
		IPv4: netip.MustParsePrefix("192.0.2.2/24"), Ports: []Port{{Protocol: "tcp", Container: 80, HostIP: netip.IPv4Unspecified(), Host: 80}},
	}})
	c.DelTable(&nftables.Table{Name: tableName(n), Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Hooknum != nil && *chain.Hooknum == *nftables.ChainHookForward && chain.Policy != nil &&
			*chain.Policy == nftables.ChainPolicyDrop && chain.Table.Family != nftables.TableFamilyBridge {
			return fmt.Errorf("the chain %s of the table %s drops what is forwarded (as dockerd's does)", chain.Name, chain.Table.Name)
		}
	}
	return nil
}

// tryForwarding says whether the kernel routes, or can be told to.
func tryForwarding() error {
	if forwards(forwarding4) {
		return nil
	}
	if err := unix.Access("/proc/sys/net/"+forwarding4, unix.W_OK); err != nil {
		return fmt.Errorf("net.ipv4.ip_forward is 0 and cannot be written: %w", err)
	}
	return nil
}
