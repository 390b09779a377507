package network

import (
	"context"

	"github.com/containerd/errdefs"
)

// ensureDefault makes the default network, or makes it again where the options
// have changed and nobody is on it.
func (ns *Networks) ensureDefault() error {
	all, err := ns.all()
	if err != nil {
		return err
	}
	for _, n := range all {
		if !n.Default {
			continue
		}
		if ns.fits(n) {
			return nil
		}
		err := ns.remove(context.Background(), n)
		if errdefs.IsPermissionDenied(err) {
			return nil // containers are on it: it stays as it was until they end
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	r := CreateRequest{Name: DefaultName, Options: map[string]string{}}
	if ns.o.Bridge.IsValid() {
		r.Subnets = append(r.Subnets, Subnet{Prefix: ns.o.Bridge.Masked(), Gateway: ns.o.Bridge.Addr(), Range: ns.o.BridgeRange})
	}
	r.IPv6 = ns.o.IPv6
	if b := ns.o.Bridge6; ns.o.IPv6 && b.IsValid() {
		s := Subnet{Prefix: b.Masked(), Range: ns.o.BridgeRange6}
		if b.Addr() != s.Prefix.Addr() {
			s.Gateway = b.Addr()
		}
		r.Subnets = append(r.Subnets, s)
	}
	if ns.o.Isolated {
		r.Options[optionICC] = "false"
	}
	_, err = ns.create(r, true)
	if errdefs.IsAlreadyExists(err) {
		return nil // another process was faster
	}
	return err
}

// fits says that the default network is as the options want it.
func (ns *Networks) fits(n *Network) bool {
	if ns.o.MTU != 0 && n.MTU != ns.o.MTU || ns.o.MTU == 0 && n.AskedMTU || n.Isolated != ns.o.Isolated {
		return false
	}
	v4, v6 := n.family(false), n.family(true)
	if b := ns.o.Bridge; b.IsValid() && (v4 == nil || v4.Prefix != b.Masked() || v4.Gateway != b.Addr() || v4.Range != ns.o.BridgeRange) {
		return false
	}
	if v6 == nil || !ns.o.IPv6 {
		return v6 == nil && !ns.o.IPv6
	}
	b := ns.o.Bridge6
	return !b.IsValid() || v6.Prefix == b.Masked() && v6.Range == ns.o.BridgeRange6 && (v6.Gateway == b.Addr() || b.Addr() == b.Masked().Addr())
}
