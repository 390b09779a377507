package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/failpoint"
)

// DefaultName is the network that containers are on who ask for none.
const DefaultName = "bridge"

// Networks are those of one engine. Its methods may be called by any number of
// goroutines and processes on one directory.
type Networks struct {
	dir    string
	driver Driver
	o      Options
	pid    func(container string) int // see Locate; may be nil

	mu sync.Mutex
	// told is the zone that the driver was told last, by network, as long as it knows it.
	told map[string][]byte
}

// Options are what dockerd has flags for; the zero value is dockerd's default.
type Options struct {
	// Bridge is the default network's gateway with the length of its subnet (--bip),
	// BridgeRange the part that containers get (--fixed-cidr).
	Bridge      netip.Prefix
	BridgeRange netip.Prefix
	// IPv6 gives the default network a subnet of version 6 (--ipv6): Bridge6, if that is
	// valid: the gateway's address with the length of its subnet (--bip6), of which containers
	// get the part BridgeRange6 (--fixed-cidr-v6).
	IPv6                  bool
	Bridge6, BridgeRange6 netip.Prefix
	// Pools are where subnets come from (--default-address-pool); none means DefaultPools.
	Pools []Pool
	// MTU in bytes (--mtu); 0 inherits the outer default route's.
	MTU int
	// Isolated forbids containers of the default network to reach each other (--icc=false).
	Isolated bool
	// HostIP is where ports are published that name no address (--ip).
	HostIP netip.Addr
	// DNS, Search and ResolvOptions go into resolv.conf instead of the outer one's (--dns, --dns-search, --dns-opt).
	DNS           []netip.Addr
	Search        []string
	ResolvOptions []string
	// HostGateways are what "host-gateway" stands for (--host-gateway-ip); none
	// takes the gateway of the container's first network.
	HostGateways []netip.Addr
	// NoHostLoopback keeps containers from the loopback addresses of the outer container, which the
	// drivers userns and switch have at the gateway's address otherwise; with it they have there
	// what listens on every address, as the kernel's bridge does.
	NoHostLoopback bool
	// Defaults are options of networks that do not say otherwise (--default-network-opt).
	Defaults map[string]string
	// OuterResolv is the outer resolv.conf; empty means /etc/resolv.conf.
	OuterResolv string
	// Outer tells what the outer network uses; nil asks the kernel.
	Outer func() (Outer, error)
	// Linger leaves a network up that its last container has left, for the next one:
	// until Settle, or the next start finds it so.
	Linger bool
}

// Outer is what den has to fit its networks into.
type Outer struct {
	// Used are the subnets that its routes lead to, but for default routes.
	Used []netip.Prefix
	// MTU is the default route's, in bytes; 0 if there is none.
	MTU int
}

// mtu is what networks inherit.
func (o Outer) mtu() int {
	if o.MTU == 0 {
		return 1500
	}
	return o.MTU
}

// A CreateRequest asks for a network.
type CreateRequest struct {
	Name string
	// Driver is "bridge" or empty.
	Driver string
	// Subnets that a user named; of each, all but Prefix may be left out.
	Subnets []Subnet
	// IPv6 wants a subnet of version 6, NoIPv4 none of version 4.
	IPv6, NoIPv4    bool
	Internal        bool
	Attachable      bool
	Labels, Options map[string]string
}

// Open opens the networks in dir, which is made if it is not there, and with it
// the default network.
func Open(dir string, d Driver, o Options) (*Networks, error) {
	if len(o.Pools) == 0 {
		o.Pools = DefaultPools()
	}
	if o.OuterResolv == "" {
		o.OuterResolv = "/etc/resolv.conf"
	}
	if o.Outer == nil {
		o.Outer = ReadOuter
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	ns := &Networks{dir: dir, driver: d, o: o}
	if err := ns.ensureDefault(); err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	if err := ns.renew(); err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	return ns, nil
}

// Driver is what makes frames move.
func (ns *Networks) Driver() Driver { return ns.driver }

// Locate tells how to find a process of a container that runs; 0 says that none is
// known. Reconcile and Watch need it to put back devices that were lost with their
// network. It is called once, before those.
func (ns *Networks) Locate(pid func(container string) int) { ns.pid = pid }

// Create makes a network; nothing moves in it until a container is attached.
func (ns *Networks) Create(_ context.Context, r CreateRequest) (*Network, error) {
	switch r.Driver {
	case "", "bridge", "default":
	case "host", "null":
		return nil, errForbidden("only one instance of %q network is allowed", r.Driver)
	default:
		return nil, classed{fmt.Sprintf("network driver %q: den has the driver bridge only; create the network without --driver", r.Driver), errdefs.ErrNotFound}
	}
	switch r.Name {
	case DefaultName, "host", "none", "default":
		return nil, errForbidden("operation is not permitted on predefined %s network", r.Name)
	}
	if strings.TrimSpace(r.Name) == "" || strings.ContainsAny(r.Name, "/\x00\n") || len(r.Name) > 255 {
		return nil, errInvalid("invalid network name %q: want 1 to 255 characters without '/'", r.Name)
	}
	return ns.create(r, false)
}

func (ns *Networks) create(r CreateRequest, isDefault bool) (*Network, error) {
	if !isDefault && len(ns.o.Defaults) > 0 {
		options := maps.Clone(ns.o.Defaults)
		maps.Copy(options, r.Options)
		r.Options = options
	}
	n := &Network{
		ID: randomID(), Name: r.Name, Created: time.Now().UTC(),
		Labels: r.Labels, Options: r.Options, NoHostLoopback: ns.o.NoHostLoopback,
		Internal: r.Internal, Attachable: r.Attachable, IPv6: r.IPv6, Default: isDefault,
		Configured: len(r.Subnets) > 0, Subnets: r.Subnets,
	}
	if err := n.readOptions(); err != nil {
		return nil, err
	}
	outer, err := ns.o.Outer()
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", r.Name, err)
	}
	if n.MTU == 0 && ns.o.MTU != 0 {
		n.MTU, n.AskedMTU = ns.o.MTU, true
	}
	if n.MTU == 0 {
		n.MTU = outer.mtu()
	}
	lock, err := ns.lockRecords()
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	others, err := ns.all()
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if o.Name == n.Name {
			return nil, errNameTaken(n.Name)
		}
	}
	if err := n.chooseSubnets(r, ns.o.Pools, others, outer.Used); err != nil {
		return nil, err
	}
	return n, ns.keep(n)
}

// chooseSubnets completes what the user named and adds what is missing.
func (n *Network) chooseSubnets(r CreateRequest, pools []Pool, others []*Network, outer []netip.Prefix) error {
	var used []netip.Prefix
	for _, o := range others {
		for _, s := range o.Subnets {
			used = append(used, s.Prefix)
		}
	}
	for i := range n.Subnets {
		s := &n.Subnets[i]
		if !s.Prefix.IsValid() {
			return errInvalid("invalid subnet of network %s: it has no prefix", n.Name)
		}
		for _, u := range used {
			if u.Overlaps(s.Prefix) {
				return errOverlap()
			}
		}
		if s.Prefix.Addr().Is6() {
			n.IPv6 = true
		}
		if n.family(s.Prefix.Addr().Is6()) != s {
			return errInvalid("network %s: den gives a network one subnet of each IP version", n.Name)
		}
		if err := s.complete(); err != nil {
			return err
		}
		used = append(used, s.Prefix)
	}
	used = append(used, outer...)
	for _, v6 := range []bool{false, true} {
		if n.family(v6) != nil || v6 && !n.IPv6 || !v6 && r.NoIPv4 {
			continue
		}
		from := pools
		if v6 {
			from = append(pools[:len(pools):len(pools)], localPool())
		}
		p, err := choosePool(from, used, v6)
		if err != nil {
			return err
		}
		s := Subnet{Prefix: p}
		if err := s.complete(); err != nil {
			return err
		}
		n.Subnets, used = append(n.Subnets, s), append(used, p)
	}
	if len(n.Subnets) == 0 {
		return errInvalid("network %s: IPv4 or IPv6 must be enabled", n.Name)
	}
	return nil
}

// keep writes a network's directory: it appears complete, by rename.
func (ns *Networks) keep(n *Network) error {
	tmp := filepath.Join(ns.dir, ".tmp-"+n.ID)
	err := os.MkdirAll(filepath.Join(tmp, endpointsDir), 0o700)
	if err == nil {
		err = writeJSON(filepath.Join(tmp, networkFile), n)
	}
	if err == nil {
		err = failpoint.Hit("network.create.rename")
	}
	if err == nil {
		err = os.Rename(tmp, ns.network(n.ID))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("create network %s: %w", n.Name, err), os.RemoveAll(tmp))
	}
	return nil
}

// List returns all networks, oldest first.
func (ns *Networks) List(context.Context) ([]*Network, error) { return ns.all() }

// Network finds a network by its id, its name or a unique beginning of its id.
func (ns *Networks) Network(_ context.Context, nameOrID string) (*Network, error) {
	all, err := ns.all()
	if err != nil {
		return nil, err
	}
	if nameOrID == "default" {
		nameOrID = DefaultName
	}
	var found []*Network
	for _, n := range all {
		if n.ID == nameOrID || n.Name == nameOrID {
			return n, nil
		}
		if nameOrID != "" && strings.HasPrefix(n.ID, nameOrID) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, errNotFound(nameOrID)
	case 1:
		return found[0], nil
	}
	return nil, errInvalid("network %s is ambiguous (%d matches found on name)", nameOrID, len(found))
}

// Remove removes a network that has no endpoints.
func (ns *Networks) Remove(ctx context.Context, nameOrID string) error {
	n, err := ns.Network(ctx, nameOrID)
	if err != nil {
		return err
	}
	if n.Default {
		return errForbidden("%s is a pre-defined network and cannot be removed", n.Name)
	}
	return ns.remove(ctx, n)
}

func (ns *Networks) remove(ctx context.Context, n *Network) error {
	lock, err := ns.lockNetwork(n.ID)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	es, err := ReadEndpoints(ns.network(n.ID))
	if err != nil {
		return err
	}
	if len(es) > 0 {
		return errActive(n, es)
	}
	if err := ns.down(ctx, n); err != nil {
		return fmt.Errorf("error while removing network: network %s: %w", n.Name, err)
	}
	if err := failpoint.Hit("network.remove.rename"); err != nil {
		return err
	}
	gone := filepath.Join(ns.dir, gonePrefix+n.ID)
	if err := os.Rename(ns.network(n.ID), gone); err != nil {
		return fmt.Errorf("error while removing network: %w", err)
	}
	if err := failpoint.Hit("network.remove.files"); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// Endpoints returns who is on a network.
func (ns *Networks) Endpoints(_ context.Context, networkID string) ([]Endpoint, error) {
	es, err := ReadEndpoints(ns.network(networkID))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNotFound(networkID)
	}
	return es, err
}

// Of returns a container's endpoints, the one with the default route first.
func (ns *Networks) Of(_ context.Context, container string) ([]Endpoint, error) {
	return ns.endpointsOf(container)
}

func randomID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
