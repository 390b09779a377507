package network

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
)

// Two engines do not know of each other's networks until they are up.
func TestEnginesInOneOuterContainerHaveSubnetsOfTheirOwn(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	world(t)
	const engines = 4
	var all []*Networks
	for range engines {
		ns := bridges(t)
		_, err := ns.Create(t.Context(), CreateRequest{Name: "app"})
		must(t, err)
		all = append(all, ns)
	}
	first, err := all[0].Network(t.Context(), "app")
	must(t, err)
	for _, ns := range all {
		if n, err := ns.Network(t.Context(), "app"); err != nil || n.Subnets[0].Prefix != first.Subnets[0].Prefix {
			t.Fatalf("%+v, %v: the test wants all to begin with the same subnet", n, err)
		}
	}
	namespaces, addresses := make([]*os.File, engines), make([]netip.Addr, engines)
	var work sync.WaitGroup
	for i, ns := range all {
		work.Go(func() {
			s, es, err := ns.Attach(t.Context(), "c", []EndpointRequest{{Network: "app", Name: "c"}})
			if err != nil {
				t.Error(err)
				return
			}
			namespaces[i], addresses[i] = s.Namespace(), es[0].IPv4.Addr()
		})
	}
	work.Wait()
	if t.Failed() {
		t.FailNow()
	}
	seen := map[netip.Prefix]bool{}
	for i, ns := range all {
		n, err := ns.Network(t.Context(), "app")
		must(t, err)
		p := n.Subnets[0].Prefix
		if seen[p] || !p.Contains(addresses[i]) {
			t.Errorf("engine %d has %s, and its container %s", i, p, addresses[i])
		}
		seen[p] = true
		l := whoami(t, namespaces[i], "tcp", netip.AddrPortFrom(addresses[i], 80).String())
		got, err := askIn(nil, "tcp", l, patience)
		expect(t, "a container as its outer one sees it", n.Gateways()[0].String(), got, err)
	}
	for i, ns := range all {
		for j := range all {
			if i != j {
				if got, err := askIn(namespaces[i], "tcp", netip.AddrPortFrom(addresses[j], 80), silence); err == nil {
					t.Errorf("engine %d's container reaches that of engine %d: %q", i, j, got)
				}
			}
		}
		must(t, ns.Release(context.Background(), "c"))
		_ = namespaces[i].Close()
	}
}

func TestSubnetsThatAUserChoseStay(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	world(t)
	want := netip.MustParsePrefix("172.29.0.0/24")
	both := []*Networks{bridges(t), bridges(t)}
	for _, ns := range both {
		_, err := ns.Create(t.Context(), CreateRequest{Name: "own", Subnets: []Subnet{{Prefix: want}}})
		must(t, err)
	}
	for _, ns := range both {
		if _, es := join(t, ns, "c", EndpointRequest{Network: "own"}); es[0].IPv4.Masked() != want {
			t.Errorf("a container has %s", es[0].IPv4)
		}
	}
	for _, ns := range both {
		must(t, ns.Release(context.Background(), "c"))
	}
}
