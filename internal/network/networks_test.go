package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"den/internal/network"
	"den/internal/network/networktest"
)

func quiet() (network.Outer, error) { return network.Outer{MTU: 1400}, nil }

func open(t *testing.T, dir string, d network.Driver, o network.Options) *network.Networks {
	t.Helper()
	if o.Outer == nil {
		o.Outer = quiet
	}
	if o.OuterResolv == "" {
		o.OuterResolv = filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(o.OuterResolv, []byte("nameserver 10.0.0.53\nsearch corp.example\noptions ndots:2\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ns, err := network.Open(dir, d, o)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func create(t *testing.T, ns *network.Networks, r network.CreateRequest) *network.Network {
	t.Helper()
	n, err := ns.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func attach(t *testing.T, ns *network.Networks, container string, rs ...network.EndpointRequest) []network.Endpoint {
	t.Helper()
	for i := range rs {
		if rs[i].Name == "" {
			rs[i].Name = container
		}
	}
	s, es, err := ns.Attach(t.Context(), container, rs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return es
}

func on(name string) network.EndpointRequest { return network.EndpointRequest{Network: name} }

func TestDefaultNetworkIsThereAndAvoidsTheOuterOnes(t *testing.T) {
	outer := func() (network.Outer, error) {
		return network.Outer{MTU: 1400, Used: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.16.128.0/17")}}, nil
	}
	dir := t.TempDir()
	ns := open(t, dir, networktest.New(), network.Options{Outer: outer})
	n, err := ns.Network(t.Context(), "bridge")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := n.Subnets[0].Prefix.String(), "172.18.0.0/16"; got != want || n.MTU != 1400 || !n.Default {
		t.Errorf("default network: %s, mtu %d, default %t; want %s, 1400, true", got, n.MTU, n.Default, want)
	}
	if err := ns.Remove(t.Context(), "bridge"); !errdefs.IsPermissionDenied(err) || err.Error() != "bridge is a pre-defined network and cannot be removed" {
		t.Errorf("remove bridge: %v", err)
	}
	again := open(t, dir, networktest.New(), network.Options{Outer: outer})
	if m, err := again.Network(t.Context(), n.ID[:8]); err != nil || m.ID != n.ID {
		t.Errorf("opened again: %v, %v; want the same network", m, err)
	}
	changed := open(t, dir, networktest.New(), network.Options{Outer: outer, Bridge: netip.MustParsePrefix("10.9.0.1/24")})
	if m, err := changed.Network(t.Context(), "bridge"); err != nil || m.Subnets[0].Gateway.String() != "10.9.0.1" {
		t.Errorf("with another --bip: %+v, %v", m, err)
	}
}

func TestSubnetsComeFromDockersPools(t *testing.T) {
	ns := open(t, t.TempDir(), networktest.New(), network.Options{})
	var got []string
	for i := range 30 {
		n, err := ns.Create(t.Context(), network.CreateRequest{Name: fmt.Sprintf("n%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, n.Subnets[0].Prefix.String())
	}
	want := []string{"172.18.0.0/16", "172.31.0.0/16", "192.168.0.0/20", "192.168.240.0/20"}
	if diff := cmp.Diff(want, []string{got[0], got[13], got[14], got[29]}); diff != "" {
		t.Errorf("subnets (-want +got):\n%s", diff)
	}
	if n, err := ns.Create(t.Context(), network.CreateRequest{Name: "more"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("one more: %v, %v; want a refusal", n, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	ns := open(t, t.TempDir(), networktest.New(), network.Options{})
	create(t, ns, network.CreateRequest{Name: "one", Subnets: []network.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}}})
	sub := func(prefix string) []network.Subnet {
		return []network.Subnet{{Prefix: netip.MustParsePrefix(prefix)}}
	}
	for _, c := range []struct {
		name  string
		r     network.CreateRequest
		class func(error) bool
		text  string
	}{
		{"taken name", network.CreateRequest{Name: "one"}, errdefs.IsAlreadyExists, "network with name one already exists"},
		{"overlap", network.CreateRequest{Name: "two", Subnets: sub("10.1.7.0/24")}, errdefs.IsPermissionDenied, "invalid pool request: Pool overlaps with other one on this address space"},
		{"predefined", network.CreateRequest{Name: "host"}, errdefs.IsPermissionDenied, "predefined host network"},
		{"driver", network.CreateRequest{Name: "x", Driver: "overlay"}, errdefs.IsNotFound, "den has the driver bridge only"},
		{"empty", network.CreateRequest{}, errdefs.IsInvalidArgument, "invalid network name"},
		{"gateway outside", network.CreateRequest{Name: "x", Subnets: []network.Subnet{{Prefix: netip.MustParsePrefix("10.2.0.0/24"), Gateway: netip.MustParseAddr("10.3.0.1")}}}, errdefs.IsInvalidArgument, "gateway 10.3.0.1"},
		{"two of a version", network.CreateRequest{Name: "x", Subnets: append(sub("10.2.0.0/24"), sub("10.3.0.0/24")...)}, errdefs.IsInvalidArgument, "one subnet of each"},
		{"no room", network.CreateRequest{Name: "x", Subnets: sub("10.2.0.0/32")}, errdefs.IsInvalidArgument, "no room"},
		{"mtu", network.CreateRequest{Name: "x", Options: map[string]string{"com.docker.network.driver.mtu": "9"}}, errdefs.IsInvalidArgument, "68 to 65535"},
		{"no version", network.CreateRequest{Name: "x", NoIPv4: true}, errdefs.IsInvalidArgument, "IPv4 or IPv6 must be enabled"},
	} {
		_, err := ns.Create(t.Context(), c.r)
		if err == nil || !c.class(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %q", c.name, err, c.text)
		}
	}
	if all, _ := ns.List(t.Context()); len(all) != 2 {
		t.Errorf("%d networks, want two", len(all))
	}
}

func TestAddressesAreTheLowestThatAreFree(t *testing.T) {
	ns := open(t, t.TempDir(), networktest.New(), network.Options{})
	create(t, ns, network.CreateRequest{Name: "n", IPv6: true, Subnets: []network.Subnet{{
		Prefix: netip.MustParsePrefix("10.1.0.0/24"), Range: netip.MustParsePrefix("10.1.0.0/29"),
		Auxiliary: map[string]netip.Addr{"router": netip.MustParseAddr("10.1.0.3")},
	}}})
	a := attach(t, ns, "a", on("n"))
	b := attach(t, ns, "b", on("n"))
	if got := []string{a[0].IPv4.String(), b[0].IPv4.String(), a[0].MAC}; !slices.Equal(got, []string{"10.1.0.2/24", "10.1.0.4/24", "02:42:0a:01:00:02"}) {
		t.Errorf("addresses %v", got)
	}
	if !a[0].IPv6.IsValid() || a[0].IPv6.Bits() != 64 || !strings.HasPrefix(a[0].IPv6.String(), "fd") {
		t.Errorf("version 6: %s, want one of a unique local prefix", a[0].IPv6)
	}
	if err := ns.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if c := attach(t, ns, "c", on("n")); c[0].IPv4.String() != "10.1.0.2/24" {
		t.Errorf("after a release: %s", c[0].IPv4)
	}
	for _, want := range []string{"10.1.0.5", "10.1.0.6", "10.1.0.7"} {
		if x := attach(t, ns, want, on("n")); x[0].IPv4.Addr().String() != want {
			t.Errorf("got %s, want %s", x[0].IPv4, want)
		}
	}
	if _, _, err := ns.Attach(t.Context(), "late", []network.EndpointRequest{on("n")}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("a full range: %v", err)
	}
}

func TestStaticAddresses(t *testing.T) {
	ns := open(t, t.TempDir(), networktest.New(), network.Options{})
	create(t, ns, network.CreateRequest{Name: "own", Subnets: []network.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}}})
	create(t, ns, network.CreateRequest{Name: "auto"})
	want := func(name, address string) network.EndpointRequest {
		return network.EndpointRequest{Network: name, Name: "x", IPv4: netip.MustParseAddr(address)}
	}
	if e := attach(t, ns, "a", want("own", "10.1.0.77")); e[0].IPv4.String() != "10.1.0.77/24" {
		t.Errorf("got %s", e[0].IPv4)
	}
	for _, c := range []struct {
		r    network.EndpointRequest
		text string
	}{
		{want("own", "10.1.0.77"), "Address already in use"},
		{want("own", "10.1.0.1"), "Address already in use"},
		{want("own", "10.2.0.1"), "no configured subnet or ip-range contain the IP address 10.2.0.1"},
		{want("own", "10.1.0.255"), "no configured subnet"},
		{want("auto", "172.18.0.9"), "user specified IP address is supported only when connecting to networks with user configured subnets"},
		{want("bridge", "172.17.0.9"), "user specified IP address is supported on user defined networks only"},
		{on("nowhere"), "network nowhere not found"},
	} {
		if _, _, err := ns.Attach(t.Context(), "b", []network.EndpointRequest{c.r}); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s on %s: %v, want %q", c.r.IPv4, c.r.Network, err, c.text)
		}
	}
	if es, _ := ns.Of(t.Context(), "b"); len(es) != 0 {
		t.Errorf("a refused container has endpoints: %v", es)
	}
}

func TestNetworkWithEndpointsStays(t *testing.T) {
	d := networktest.New()
	ns := open(t, t.TempDir(), d, network.Options{})
	n := create(t, ns, network.CreateRequest{Name: "n"})
	attach(t, ns, "a", on("n"))
	err := ns.Remove(t.Context(), "n")
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "network n has active endpoints") {
		t.Errorf("remove: %v", err)
	}
	if err := ns.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if d.Networks[n.ID] != nil {
		t.Error("a network without endpoints is still up")
	}
	if err := ns.Remove(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Network(t.Context(), "n"); !errdefs.IsNotFound(err) || err.Error() != "network n not found" {
		t.Errorf("after the removal: %v", err)
	}
}

func TestGatewayAndPortsMoveWhenTheirNetworkGoes(t *testing.T) {
	d := networktest.New()
	ns := open(t, t.TempDir(), d, network.Options{HostIP: netip.MustParseAddr("127.0.0.1")})
	b := create(t, ns, network.CreateRequest{Name: "b"})
	a := create(t, ns, network.CreateRequest{Name: "a"})
	create(t, ns, network.CreateRequest{Name: "_inner", Internal: true})
	ports := []network.Port{{Protocol: "tcp", Container: 80}}
	r := func(name string) network.EndpointRequest {
		return network.EndpointRequest{Network: name, Name: "c", Ports: ports}
	}
	s, es, err := ns.Attach(t.Context(), "c", []network.EndpointRequest{r("_inner"), r("b"), r("a")})
	if err != nil {
		t.Fatal(err)
	}
	if d.Gateways["c"] != a.ID || len(d.Published) != 1 || len(es[2].Ports) != 1 || es[2].Ports[0].Host == 0 || es[2].Ports[0].HostIP.String() != "127.0.0.1" {
		t.Errorf("gateway %s, published %v, endpoint %+v; want network a, one port", d.Gateways["c"], d.Published, es[2])
	}
	if err := ns.Disconnect(t.Context(), "c", s, "a", false); err != nil {
		t.Fatal(err)
	}
	of, err := ns.Of(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if d.Gateways["c"] != b.ID || len(d.Published[of[0].ID]) != 1 || of[0].Network != b.ID || of[0].Ports[0].Host != es[2].Ports[0].Host {
		t.Errorf("after leaving a: gateway %s, published %v, endpoints %+v", d.Gateways["c"], d.Published, of)
	}
	if err := ns.Disconnect(t.Context(), "c", s, "a", false); err == nil {
		t.Error("leaving a twice passes")
	}
	e, err := ns.Connect(t.Context(), "c", 1, nil, network.EndpointRequest{Network: "a", Name: "c"})
	if err != nil || e.Device != "eth2" || e.Gateway {
		t.Errorf("back on a: %+v, %v; want eth2, not the gateway", e, err)
	}
}

// Telling a network's process its names costs two changes of processes: it happens only
// when they are others.
func TestNamesAreToldWhenTheyChange(t *testing.T) {
	d := networktest.New()
	told := 0
	d.Fail = func(method string) error {
		if method == "Names" {
			told++
		}
		return nil
	}
	dir := t.TempDir()
	ns := open(t, dir, d, network.Options{Linger: true})
	n := create(t, ns, network.CreateRequest{Name: "n"})
	expect := func(when string, want int) {
		t.Helper()
		if told != want {
			t.Errorf("%s: names were told %d times, want %d", when, told, want)
		}
	}
	attach(t, ns, "a", on("bridge"))
	expect("first container of the default network", 1)
	attach(t, ns, "b", on("bridge"))
	if err := ns.Release(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	expect("another one, which has no name there", 1)
	attach(t, ns, "c", on("n"))
	attach(t, ns, "e", on("n"))
	if err := ns.Release(t.Context(), "e"); err != nil {
		t.Fatal(err)
	}
	expect("a name that comes and goes", 4)
	// Another den has told something else meanwhile.
	if err := os.WriteFile(filepath.Join(dir, n.ID, "zone.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ns.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	attach(t, ns, "c", on("n"))
	expect("after another den", 5)
	if err := ns.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := ns.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(d.Networks) != 1 {
		t.Errorf("%d networks are up after Settle, want that of a", len(d.Networks))
	}
	attach(t, ns, "c", on("n"))
	expect("after the network was down", 6)
}

func TestNothingIsLeftOfAFailedAttach(t *testing.T) {
	for _, method := range []string{"NewSpace", "Up", "Connect", "Publish", "Names"} {
		d := networktest.New()
		ns := open(t, t.TempDir(), d, network.Options{})
		create(t, ns, network.CreateRequest{Name: "n"})
		d.Fail = func(m string) error {
			if m == method {
				return errors.New("no luck")
			}
			return nil
		}
		r := network.EndpointRequest{Network: "n", Name: "c", Ports: []network.Port{{Protocol: "tcp", Container: 80}}}
		ctx, cancel := context.WithCancel(t.Context())
		_, _, err := ns.Attach(ctx, "c", []network.EndpointRequest{r})
		cancel()
		if err == nil || !strings.Contains(err.Error(), "no luck") {
			t.Errorf("%s: %v", method, err)
		}
		if es, _ := ns.Of(t.Context(), "c"); len(es) != 0 || len(d.Networks) != 0 || len(d.Published) != 0 {
			t.Errorf("%s: left: endpoints %v, networks %v, ports %v", method, es, d.Networks, d.Published)
		}
	}
}

func TestReconcileReleasesTheDeadAndRestoresTheLiving(t *testing.T) {
	dir := t.TempDir()
	ns := open(t, dir, networktest.New(), network.Options{})
	n := create(t, ns, network.CreateRequest{Name: "n"})
	dead := create(t, ns, network.CreateRequest{Name: "dead"})
	ports := []network.Port{{Protocol: "tcp", Container: 80, Host: 8080}}
	live := attach(t, ns, "live", network.EndpointRequest{Network: "n", Ports: ports})
	attach(t, ns, "gone", on("n"), on("dead"))
	if err := os.WriteFile(filepath.Join(dir, n.ID, "endpoints", "torn"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, ".gone-x", "y"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := networktest.New() // of the next den serve, after a reboot
	ns = open(t, dir, d, network.Options{})
	if err := ns.Reconcile(t.Context(), func(c string) bool { return c == "live" }); err != nil {
		t.Fatal(err)
	}
	if d.Networks[n.ID] == nil || d.Networks[dead.ID] != nil || len(d.Published[live[0].ID]) != 1 {
		t.Errorf("up %v, published %v", d.Networks, d.Published)
	}
	if got := d.Zones[n.ID].Names; len(got) != 2 || got[0].Name != "live" {
		t.Errorf("names %v", got)
	}
	es, err := ns.Endpoints(t.Context(), n.ID)
	if err != nil || len(es) != 1 {
		t.Errorf("endpoints %v, %v", es, err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".gone-x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half removed network: %v", err)
	}
}

func TestManyProcessesGiveNoAddressTwice(t *testing.T) {
	dir := t.TempDir()
	d := networktest.New()
	create(t, open(t, dir, d, network.Options{}), network.CreateRequest{Name: "n"})
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]string{}
	for i := range 8 {
		ns := open(t, dir, d, network.Options{}) // its own descriptions of the lock files, as a process has
		wg.Go(func() {
			for j := range 4 {
				c := fmt.Sprintf("c%d-%d", i, j)
				_, es, err := ns.Attach(t.Context(), c, []network.EndpointRequest{{Network: "n", Name: c}})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other := seen[es[0].IPv4.String()]; other != "" {
					t.Errorf("%s has %s, which %s has", c, es[0].IPv4, other)
				}
				seen[es[0].IPv4.String()] = c
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 32 {
		t.Errorf("%d addresses, want 32", len(seen))
	}
}

// mortal is a driver whose networks die when they are taken off its list.
type mortal struct{ *networktest.Driver }

func (m mortal) Alive(n *network.Network) bool {
	m.Lock()
	defer m.Unlock()
	return m.Networks[n.ID] != nil
}

func TestWatchRevivesWhatDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mortal{networktest.New()}
		ns := open(t, t.TempDir(), d, network.Options{})
		n := create(t, ns, network.CreateRequest{Name: "n"})
		idle := create(t, ns, network.CreateRequest{Name: "idle"})
		es := attach(t, ns, "a", network.EndpointRequest{Network: "n", Ports: []network.Port{{Protocol: "tcp", Container: 80}}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			ns.Watch(ctx, func(err error) { t.Error(err) })
		}()
		d.Lock()
		clear(d.Networks)
		clear(d.Published)
		clear(d.Zones)
		d.Unlock()
		time.Sleep(time.Minute)
		cancel()
		<-ended
		if d.Networks[n.ID] == nil || len(d.Published[es[0].ID]) != 1 || len(d.Zones[n.ID].Names) == 0 {
			t.Errorf("revived: %v, %v, %v", d.Networks, d.Published, d.Zones)
		}
		if d.Networks[idle.ID] != nil {
			t.Error("a network without endpoints is up")
		}
	})
}
