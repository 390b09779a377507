package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// One table of nftables for each network, inet den_<id>, made and replaced in one
// transaction:
//
//	chain forward {                               # hook forward, policy accept
//	  iifname BRIDGE oifname BRIDGE accept        # or drop: between containers, where br_netfilter shows them
//	  oifname BRIDGE ct state established,related accept   # not if internal
//	  oifname BRIDGE ct status dnat accept        # not if internal
//	  oifname BRIDGE drop                         # other networks, and the outside: ports are published
//	  iifname BRIDGE drop                         # only if internal
//	}
//	chain postrouting {                           # hook postrouting, nat; not if internal
//	  ip saddr SUBNET oifname != BRIDGE masquerade
//	  ip6 saddr SUBNET oifname != BRIDGE masquerade
//	}
//	chain prerouting {                            # hook prerouting, nat; not if internal
//	  iifname != BRIDGE fib daddr type local tcp dport PORT dnat CONTAINER:PORT   # for each published TCP port
//	}
//
// Published ports have listeners of den-net, which loopback clients and the
// network's own containers reach. Others are led past them by the last chain: the container
// sees who they are, and they see a port that is closed.
//
// A verdict of accept ends this table only, a drop ends the packet, so that tables of
// networks add up to: only answers come in.

func tableName(n *Network) string { return "den_" + n.ID[:11] }

// applyRules replaces the rules of n, whose endpoints are es.
func applyRules(n *Network, es []Endpoint) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	planRules(c, n, es)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w; the outer container needs CAP_NET_ADMIN and a kernel with nf_tables, or a rung other than privileged", tableName(n), err)
	}
	return nil
}

// hasRules says that n has its table.
func hasRules(n *Network) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("nftables: list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName(n) }), nil
}

func removeRules(n *Network) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Name: tableName(n), Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", tableName(n), err)
	}
	return nil
}

// A table is a network's that is being planned.
type table struct {
	c *nftables.Conn
	t *nftables.Table
	n *Network
}

// chain adds a base chain; what its rules say nothing about passes.
func (t *table) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return t.c.AddChain(&nftables.Chain{Name: name, Table: t.t, Type: kind, Hooknum: hook, Priority: priority, Policy: &accept})
}

func (t *table) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	t.c.AddRule(&nftables.Rule{Table: t.t, Chain: chain, Exprs: slices.Concat(parts...)})
}

// planRules puts the network's whole table into the next transaction of c.
func planRules(c *nftables.Conn, n *Network, es []Endpoint) {
	t := &table{c, &nftables.Table{Name: tableName(n), Family: nftables.TableFamilyINet}, n}
	c.AddTable(t.t) // so that there is one to delete
	c.DelTable(t.t)
	c.AddTable(t.t)
	t.forward()
	if !n.Internal {
		t.masquerade()
		t.publish(es)
	}
}

func (t *table) forward() {
	bridge := bridgeName(t.n)
	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	between := expr.VerdictAccept
	if t.n.Isolated {
		between = expr.VerdictDrop
	}
	t.rule(forward, iif(expr.CmpOpEq, bridge), oif(expr.CmpOpEq, bridge), verdict(between))
	if !t.n.Internal {
		t.rule(forward, oif(expr.CmpOpEq, bridge), tracked(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
		t.rule(forward, oif(expr.CmpOpEq, bridge), tracked(expr.CtKeySTATUS, statusDNAT), verdict(expr.VerdictAccept))
	}
	t.rule(forward, oif(expr.CmpOpEq, bridge), verdict(expr.VerdictDrop))
	if t.n.Internal {
		t.rule(forward, iif(expr.CmpOpEq, bridge), verdict(expr.VerdictDrop))
	}
}

func (t *table) masquerade() {
	if wanted, err := t.n.option(optionMasquerade, true); err != nil || !wanted {
		return
	}
	post := t.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, s := range t.n.Subnets {
		t.rule(post, from(s.Prefix), oif(expr.CmpOpNeq, bridgeName(t.n)), []expr.Any{&expr.Masq{}})
	}
}

// publish leads clients from elsewhere to containers of the same IP version.
func (t *table) publish(es []Endpoint) {
	pre := t.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	for _, e := range es {
		for _, p := range e.Ports {
			to := e.IPv4
			if p.HostIP.Is6() {
				to = e.IPv6
			}
			if p.Protocol != "tcp" || !to.IsValid() || p.HostIP.IsLoopback() {
				continue // den-net's
			}
			t.rule(pre, iif(expr.CmpOpNeq, bridgeName(t.n)), local(p.HostIP), tcpPort(p.Host), dnat(netip.AddrPortFrom(to.Addr(), p.Container)))
		}
	}
}

// deviceName is the 16 bytes of a device's name as the kernel compares them.
func deviceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: deviceName(name)},
	}
}

func oif(op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: deviceName(name)},
	}
}

// statusDNAT is IPS_DST_NAT of <linux/netfilter/nf_conntrack_common.h>.
const statusDNAT = 1 << 5

// tracked matches connections of which one of the bits is set.
func tracked(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(bits),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// version matches packets of a's IP version.
func version(a netip.Addr) []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if a.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
}

// local matches packets to a, or to any address of this namespace if a is unspecified.
func local(a netip.Addr) []expr.Any {
	if a.IsUnspecified() {
		return append(version(a),
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
	}
	offset := uint32(16) // in the IPv4 header
	if a.Is6() {
		offset = 24
	}
	return append(version(a),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func tcpPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

func dnat(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

// from matches packets whose source is in p.
func from(p netip.Prefix) []expr.Any {
	offset := uint32(12) // in the IPv4 header
	if p.Addr().Is6() {
		offset = 8
	}
	size := uint32(p.Addr().BitLen() / 8)
	return append(version(p.Addr()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask(p), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func mask(p netip.Prefix) []byte {
	b := make([]byte, 16)
	hi, lo := ^uint64(0), ^uint64(0)
	bits := p.Bits()
	if bits < 64 {
		hi, lo = ^(hi >> bits), 0
	} else {
		lo = ^(lo >> (bits - 64))
	}
	binary.BigEndian.PutUint64(b, hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return b[:p.Addr().BitLen()/8]
}
