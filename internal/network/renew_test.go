package network_test

import (
	"net/netip"
	"slices"
	"testing"

	"den/internal/network"
	"den/internal/network/networktest"
)

// A directory of networks outlives its outer container, whose successor may have another MTU.
func TestNetworksInheritTheMTUOfTheOuterContainerTheyAreIn(t *testing.T) {
	dir := t.TempDir()
	outer := func(mtu int) network.Options {
		return network.Options{Outer: func() (network.Outer, error) { return network.Outer{MTU: mtu}, nil }}
	}
	ns := open(t, dir, networktest.New(), outer(1500))
	create(t, ns, network.CreateRequest{Name: "inherits"})
	create(t, ns, network.CreateRequest{Name: "lives"})
	create(t, ns, network.CreateRequest{Name: "asks", Options: map[string]string{"com.docker.network.driver.mtu": "1300"}})
	attach(t, ns, "c1", on("lives"))
	mtus := func(ns *network.Networks, want map[string]int) {
		t.Helper()
		for name, mtu := range want {
			n, err := ns.Network(t.Context(), name)
			if err != nil || n.MTU != mtu {
				t.Errorf("%s: MTU %d, %v; want %d", name, n.MTU, err, mtu)
			}
		}
	}
	mtus(open(t, dir, networktest.New(), outer(1450)), map[string]int{"bridge": 1450, "inherits": 1450, "lives": 1500, "asks": 1300})
	asked := outer(1450)
	asked.MTU = 1200
	ns = open(t, dir, networktest.New(), asked)
	create(t, ns, network.CreateRequest{Name: "after"})
	mtus(ns, map[string]int{"bridge": 1200, "after": 1200, "inherits": 1450})
	mtus(open(t, dir, networktest.New(), outer(1450)), map[string]int{"bridge": 1450, "after": 1200})
}

func TestNetworksLeadToTheHostAsTheEngineIsToldNow(t *testing.T) {
	dir := t.TempDir()
	create(t, open(t, dir, networktest.New(), network.Options{}), network.CreateRequest{Name: "app"})
	for _, closed := range []bool{true, true, false} {
		ns := open(t, dir, networktest.New(), network.Options{NoHostLoopback: closed})
		for _, name := range []string{"bridge", "app"} {
			if n, err := ns.Network(t.Context(), name); err != nil || n.NoHostLoopback != closed {
				t.Errorf("%s: closed %t, %v; want %t", name, n.NoHostLoopback, err, closed)
			}
		}
	}
}

func TestNewNetworksGetTheDefaultOptions(t *testing.T) {
	ns := open(t, t.TempDir(), networktest.New(), network.Options{Defaults: map[string]string{"com.docker.network.driver.mtu": "1300", "a": "b"}})
	if n := create(t, ns, network.CreateRequest{Name: "as it is"}); n.MTU != 1300 || n.Options["a"] != "b" {
		t.Errorf("%+v", n)
	}
	if n := create(t, ns, network.CreateRequest{Name: "own", Options: map[string]string{"com.docker.network.driver.mtu": "1280"}}); n.MTU != 1280 || n.Options["a"] != "b" {
		t.Errorf("%+v", n)
	}
	if n, err := ns.Network(t.Context(), "bridge"); err != nil || n.MTU != 1400 {
		t.Errorf("the default network has MTU %d, %v, want the outer one", n.MTU, err)
	}
}

func TestDefaultNetworkHasTheSubnetOfIPv6ThatIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		o                      network.Options
		prefix, gateway, given string
	}{
		{network.Options{IPv6: true, Bridge6: netip.MustParsePrefix("fd00:9::/64")}, "fd00:9::/64", "fd00:9::1", "fd00:9::"},
		{network.Options{IPv6: true, Bridge6: netip.MustParsePrefix("fd00:9::5/64"), BridgeRange6: netip.MustParsePrefix("fd00:9::8000/113")}, "fd00:9::/64", "fd00:9::5", "fd00:9::8"},
	} {
		ns := open(t, dir, networktest.New(), c.o)
		n, err := ns.Network(t.Context(), "bridge")
		if err != nil {
			t.Fatal(err)
		}
		s := n.Subnets[slices.IndexFunc(n.Subnets, func(s network.Subnet) bool { return s.Prefix.Addr().Is6() })]
		if s.Prefix.String() != c.prefix || s.Gateway.String() != c.gateway {
			t.Errorf("%+v, want %s by %s", s, c.prefix, c.gateway)
		}
		again, err := open(t, dir, networktest.New(), c.o).Network(t.Context(), "bridge")
		if err != nil || again.ID != n.ID {
			t.Errorf("the same options make another network: %v", err)
		}
		e := attach(t, ns, "c1", on("bridge"))[0]
		if a := e.IPv6.Addr().String(); len(a) < len(c.given) || a[:len(c.given)] != c.given {
			t.Errorf("a container gets %s, want one that begins with %s", a, c.given)
		}
		if err := ns.Release(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
}
