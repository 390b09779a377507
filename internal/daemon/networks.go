package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/network"
	"den/internal/network/userns"
	"den/internal/network/vswitch"
	"den/internal/probe"
	"den/internal/sandbox"
	"den/internal/sys"
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
	choice := network.Choose(explained(networkFacts(r.Choice.Rung), r.Facts.Security))
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
	if choice.Driver == network.SwitchDriver {
		if d.switches, err = claimSwitches(ctx, dir); err != nil {
			return nil, choice, err
		}
	}
	o.Linger = true
	ns, err := network.Open(dir, driver, o)
	return ns, choice, err
}

const (
	// switchTime is how long a den serve that is ending may take until the next one has its networks.
	switchTime = 20 * time.Second
	// noticeTime is how long one that was told to end, or was killed, may take until it says so, or is gone.
	noticeTime = 2 * time.Second
)

// claimSwitches makes this process the only one with networks in dir, until the file is closed. They move in the process
// on the rungs without namespaces: containers of a second one would have addresses and names in the same networks, and
// nothing between. The file has content while its owner does not mean to end.
func claimSwitches(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "switch.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	for begin := time.Now(); ; {
		ok, err := sys.TryFlock(f, unix.LOCK_EX)
		if ok {
			// Without it the next one is only more patient.
			_, _ = f.WriteAt([]byte("in use\n"), 0)
			return f, nil
		}
		if err == nil && time.Since(begin) >= patience(f) {
			err = fmt.Errorf("networks: another den serve has this engine, whose containers could not reach those of this one on this rung: "+
				"end that one, or give this one an engine of its own (--data-root DIR): %w", errdefs.ErrFailedPrecondition)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		time.Sleep(20 * time.Millisecond) // there is no waiting for a lock with a deadline
	}
}

// patience is how long the owner of the claim f is waited for.
func patience(f *os.File) time.Duration {
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		return noticeTime
	}
	return switchTime
}

// leaveSwitches says that this process is about to end, so that the next one waits for that.
func (d *Den) leaveSwitches() {
	if d.switches != nil {
		_ = d.switches.Truncate(0) // the next one is less patient
	}
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

// explained are facts whose refusals name the security module that may be behind them.
func explained(f network.Facts, s probe.Security) network.Facts {
	for _, err := range []*error{&f.Namespaces, &f.Packets, &f.Rules, &f.Forwarding} {
		if *err != nil {
			*err = sandbox.Explain(s, *err)
		}
	}
	return f
}

func networkDriver(name, dir string) (network.Driver, error) {
	switch name {
	case network.BridgeDriver:
		return network.NewBridge(dir)
	case network.UsernsDriver:
		return userns.New(dir)
	case network.SwitchDriver:
		return vswitch.New(vswitch.Options{}), nil
	}
	return nil, fmt.Errorf("networks: no driver %q in this den: %w", name, errdefs.ErrNotImplemented)
}

// networks reads what dockerd's flags say about networks.
func (e EngineOptions) networks() (network.Options, error) {
	o := network.Options{MTU: e.MTU, IPv6: e.IPv6, Isolated: e.NoICC, NoHostLoopback: e.NoHostLoopback, Search: e.DNSSearch, ResolvOptions: e.DNSOptions}
	if err := e.defaultNetwork(&o); err != nil {
		return o, err
	}
	for _, p := range e.Pools {
		pool, err := network.ParsePool(p)
		if err != nil {
			return o, fmt.Errorf("--default-address-pool: %w", err)
		}
		o.Pools = append(o.Pools, pool)
	}
	var err error
	if o.DNS, err = addresses("dns", e.DNS); err != nil {
		return o, err
	}
	if o.HostGateways, err = addresses("host-gateway-ip", e.HostGateways); err != nil {
		return o, err
	}
	if e.PublishIP != "" {
		a, err := addresses("ip", []string{e.PublishIP})
		if err != nil {
			return o, err
		}
		if a[0] != netip.IPv4Unspecified() { // dockerd's default, which is every address of IPv6, too
			o.HostIP = a[0]
		}
	}
	o.Defaults, err = networkOptions(e.NetworkOptions)
	return o, err
}

// defaultNetwork reads the flags about the default network's subnets.
func (e EngineOptions) defaultNetwork(o *network.Options) error {
	for _, f := range []struct {
		flag, value string
		v6          bool
		to          *netip.Prefix
	}{
		{"bip", e.BIP, false, &o.Bridge}, {"fixed-cidr", e.FixedCIDR, false, &o.BridgeRange},
		{"bip6", e.BIP6, true, &o.Bridge6}, {"fixed-cidr-v6", e.FixedCIDR6, true, &o.BridgeRange6},
	} {
		if f.value == "" || f.v6 && !e.IPv6 { // dockerd's, too, mean nothing without --ipv6
			continue
		}
		p, err := netip.ParsePrefix(f.value)
		if err == nil && p.Addr().Is6() != f.v6 {
			err = errors.New("an address of the other IP version")
		}
		if err != nil {
			return fmt.Errorf("--%s %.100q: %w: %w", f.flag, f.value, err, errdefs.ErrInvalidArgument)
		}
		*f.to = p
	}
	// dockerd's default network is that range then.
	if o.BridgeRange.IsValid() && !o.Bridge.IsValid() {
		o.Bridge = netip.PrefixFrom(o.BridgeRange.Masked().Addr().Next(), o.BridgeRange.Bits())
	}
	if o.BridgeRange6.IsValid() && !o.Bridge6.IsValid() {
		o.Bridge6, o.BridgeRange6 = o.BridgeRange6.Masked(), netip.Prefix{}
	}
	return nil
}

func addresses(flag string, list []string) (out []netip.Addr, err error) {
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w: %w", flag, err, errdefs.ErrInvalidArgument)
		}
		out = append(out, a)
	}
	return out, nil
}

// networkOptions reads DRIVER=KEY=VALUE[,KEY=VALUE...], as --default-network-opt and daemon.json have it; den
// has the driver bridge.
func networkOptions(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, text := range list {
		driver, options, _ := strings.Cut(text, "=")
		for pair := range strings.SplitSeq(options, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" {
				return nil, fmt.Errorf("--default-network-opt %.100q: want DRIVER=KEY=VALUE: %w", text, errdefs.ErrInvalidArgument)
			}
			if driver == "bridge" {
				out[key] = value
			}
		}
	}
	return out, nil
}
