package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

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
//	  oifname BRIDGE drop                         # other networks, and the outside: ports are published
//	  iifname BRIDGE drop                         # only if internal
//	}
//	chain postrouting {                           # hook postrouting, nat; not if internal
//	  ip saddr SUBNET oifname != BRIDGE masquerade
//	  ip6 saddr SUBNET oifname != BRIDGE masquerade
//	}
//
// A verdict of accept ends this table only, a drop ends the packet, so that tables of
// networks add up to: only answers come in.

func tableName(n *Network) string { return "den_" + n.ID[:11] }

func applyRules(n *Network) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	planRules(c, n)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w; the outer container needs CAP_NET_ADMIN and a kernel with nf_tables, or a rung other than privileged", tableName(n), err)
	}
	return nil
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

// planRules puts the network's whole table into the next transaction of c.
func planRules(c *nftables.Conn, n *Network) {
	t := &nftables.Table{Name: tableName(n), Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	bridge := bridgeName(n)
	accept := nftables.ChainPolicyAccept
	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: all})
	}
	between := expr.VerdictAccept
	if n.Isolated {
		between = expr.VerdictDrop
	}
	rule(forward, iif(bridge), oif(expr.CmpOpEq, bridge), verdict(between))
	if !n.Internal {
		rule(forward, oif(expr.CmpOpEq, bridge), established(), verdict(expr.VerdictAccept))
	}
	rule(forward, oif(expr.CmpOpEq, bridge), verdict(expr.VerdictDrop))
	if n.Internal {
		rule(forward, iif(bridge), verdict(expr.VerdictDrop))
		return
	}
	if masquerade, err := n.option(optionMasquerade, true); err != nil || !masquerade {
		return
	}
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &accept,
	})
	for _, s := range n.Subnets {
		rule(post, from(s.Prefix), oif(expr.CmpOpNeq, bridge), []expr.Any{&expr.Masq{}})
	}
}

// device is the 16 bytes of a device's name as the kernel compares them.
func deviceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: deviceName(name)},
	}
}

func oif(op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: deviceName(name)},
	}
}

func established() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

// from matches packets whose source is in p.
func from(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12) // in the IPv4 header
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	size := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask(p), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
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
