package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"

	"den/internal/network"
	"den/internal/network/userns"
	"den/internal/network/vswitch"
	"den/internal/sandbox"
)

// Networks opens the engine's networks on the driver that fits the rung. They are
// nil, and the choice says why, where containers have the outer network or none.
func (d *Den) Networks(ctx context.Context, e EngineOptions) (*network.Networks, network.Choice, error) {
	o, err := e.networks()
	if err != nil {
		return nil, network.Choice{}, err
	}
	r, err := d.Runner(ctx)
	if err != nil {
		return nil, network.Choice{}, err
	}
	choice := network.Choose(networkFacts(r.Choice.Rung))
	if choice.Driver == "" {
		return nil, choice, nil
	}
	dir, err := d.Store.NetworksDir(ctx)
	if err != nil {
		return nil, choice, err
	}
	driver, err := networkDriver(choice.Driver, dir)
	if errdefs.IsNotImplemented(err) {
		return nil, network.Choice{Why: fmt.Sprintf("containers share the outer network: %v", err)}, nil
	}
	if err != nil {
		return nil, choice, err
	}
	o.Linger = true
	ns, err := network.Open(dir, driver, o)
	return ns, choice, err
}

// networkFacts tries what is not known from the rung.
func networkFacts(rung sandbox.Rung) network.Facts {
	switch rung {
	case sandbox.RungSentry:
		return network.Facts{OwnStack: true}
	case sandbox.RungChroot:
		return network.Facts{Namespaces: errors.New("the rung chroot makes no namespaces")}
	}
	return network.Probe()
}

func networkDriver(name, dir string) (network.Driver, error) {
	switch name {
	case network.BridgeDriver:
		return network.NewBridge(dir)
	case network.UsernsDriver:
		return userns.New(dir)
	case network.SwitchDriver:
		return vswitch.New(vswitch.Options{HostLoopback: true}), nil
	}
	return nil, fmt.Errorf("networks: no driver %q in this den: %w", name, errdefs.ErrNotImplemented)
}

// networks reads what dockerd's flags say about networks.
func (e EngineOptions) networks() (network.Options, error) {
	o := network.Options{MTU: e.MTU, IPv6: e.IPv6, Search: e.DNSSearch, ResolvOptions: e.DNSOptions}
	var err error
	if e.BIP != "" {
		if o.Bridge, err = netip.ParsePrefix(e.BIP); err != nil {
			return o, fmt.Errorf("--bip: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if e.FixedCIDR != "" {
		if o.BridgeRange, err = netip.ParsePrefix(e.FixedCIDR); err != nil {
			return o, fmt.Errorf("--fixed-cidr: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if !o.Bridge.IsValid() { // dockerd's default network is that range then
			o.Bridge = netip.PrefixFrom(o.BridgeRange.Masked().Addr().Next(), o.BridgeRange.Bits())
		}
	}
	for _, p := range e.Pools {
		pool, err := network.ParsePool(p)
		if err != nil {
			return o, fmt.Errorf("--default-address-pool: %w", err)
		}
		o.Pools = append(o.Pools, pool)
	}
	for _, s := range e.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return o, fmt.Errorf("--dns: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		o.DNS = append(o.DNS, a)
	}
	return o, nil
}
