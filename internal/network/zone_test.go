package network_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"den/internal/network"
	"den/internal/network/networktest"
)

// look answers name as a DNS server of z does for the client.
func look(z network.Zone, client netip.Addr, name string) []string {
	var as []string
	for _, n := range z.Names {
		if n.Name == name && (len(n.For) == 0 || slices.Contains(n.For, client)) {
			for _, a := range n.Addresses {
				as = append(as, a.String())
			}
		}
	}
	slices.Sort(as)
	return as
}

func TestNamesOfAUserNetwork(t *testing.T) {
	d := networktest.New()
	ns := open(t, t.TempDir(), d, network.Options{})
	front := create(t, ns, network.CreateRequest{Name: "front"})
	back := create(t, ns, network.CreateRequest{Name: "back"})
	id := strings.Repeat("ab", 32)
	web := attach(t, ns, id, network.EndpointRequest{Network: "front", Name: "web", Aliases: []string{"www", "pool"}},
		network.EndpointRequest{Network: "back", Name: "web"})
	other := attach(t, ns, "other", network.EndpointRequest{Network: "front", Aliases: []string{"pool"}, Links: map[string]string{"w": id}, DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}})
	db := attach(t, ns, "db", network.EndpointRequest{Network: "back"})
	webFront, webBack := web[0].IPv4.Addr(), web[1].IPv4.Addr()
	if web[0].Network != front.ID {
		t.Fatalf("endpoints %v", web)
	}
	otherAddr, dbAddr := other[0].IPv4.Addr(), db[0].IPv4.Addr()
	for _, c := range []struct {
		network string
		client  netip.Addr
		name    string
		want    []netip.Addr
	}{
		{front.ID, otherAddr, "web", []netip.Addr{webFront}},
		{front.ID, otherAddr, "web.front", []netip.Addr{webFront}},
		{front.ID, otherAddr, "www", []netip.Addr{webFront}},
		{front.ID, otherAddr, id[:12], []netip.Addr{webFront}},
		{front.ID, otherAddr, "pool", []netip.Addr{webFront, otherAddr}},
		{front.ID, otherAddr, "w", []netip.Addr{webFront}},
		{front.ID, webFront, "w", nil},
		{front.ID, otherAddr, "db", nil},
		{front.ID, webFront, "db", []netip.Addr{dbAddr}},
		{back.ID, webBack, "other", []netip.Addr{otherAddr}},
		{back.ID, dbAddr, "other", nil},
	} {
		var want []string
		for _, a := range c.want {
			want = append(want, a.String())
		}
		slices.Sort(want)
		// web is on both networks, so that its own name means both of its addresses.
		if got := look(d.Zones[c.network], c.client, c.name); !slices.Equal(got, want) {
			t.Errorf("%s asks for %s: %v, want %v", c.client, c.name, got, want)
		}
	}
	z := d.Zones[front.ID]
	if z.Reverse[webFront] != "web.front" || !slices.Equal(z.Forward[otherAddr], []netip.Addr{netip.MustParseAddr("9.9.9.9")}) {
		t.Errorf("reverse %v, forward %v", z.Reverse, z.Forward)
	}
	if err := ns.Release(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := look(d.Zones[front.ID], otherAddr, "web"); got != nil {
		t.Errorf("after its end web is %v", got)
	}
}

func TestDefaultNetworkResolvesLinksOnly(t *testing.T) {
	d := networktest.New()
	ns := open(t, t.TempDir(), d, network.Options{})
	db := attach(t, ns, "db", on("bridge"))
	web := attach(t, ns, "web", network.EndpointRequest{Network: "bridge", Links: map[string]string{"database": "db"}})
	z := d.Zones[web[0].Network]
	if got := look(z, web[0].IPv4.Addr(), "db"); got != nil {
		t.Errorf("db is %v", got)
	}
	if got := look(z, web[0].IPv4.Addr(), "database"); !slices.Equal(got, []string{db[0].IPv4.Addr().String()}) {
		t.Errorf("database is %v", got)
	}
	hosts, err := ns.Hosts(t.Context(), web, "web", "", []network.Host{{Addr: netip.MustParseAddr("1.2.3.4"), Names: []string{"extra"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"127.0.0.1\tlocalhost\n", "1.2.3.4\textra\n", "172.17.0.2\tdatabase db db\n", "172.17.0.3\tweb\n"} {
		if !strings.Contains(hosts, line) {
			t.Errorf("no line %q in\n%s", line, hosts)
		}
	}
}

func TestResolvConf(t *testing.T) {
	ns := open(t, t.TempDir(), networktest.New(), network.Options{})
	create(t, ns, network.CreateRequest{Name: "n"})
	def := attach(t, ns, "a", on("bridge"))
	own := attach(t, ns, "b", on("n"))
	for _, c := range []struct {
		name string
		es   []network.Endpoint
		want network.Resolv
		text string
	}{
		{"no network of den's", nil, network.Resolv{}, "nameserver 10.0.0.53\nsearch corp.example\noptions ndots:2\n"},
		{"default network", def, network.Resolv{}, "nameserver 10.0.0.53\nsearch corp.example\noptions ndots:2\n"},
		{"default network, loopback server", def, network.Resolv{Servers: []netip.Addr{netip.MustParseAddr("127.0.0.53")}}, "nameserver 172.17.0.1\nsearch corp.example\noptions ndots:2\n"},
		{"user network", own, network.Resolv{Search: []string{"."}, Options: []string{"timeout:1"}}, "nameserver 172.18.0.1\noptions timeout:1 ndots:0\n"},
		{"user network with --dns", own, network.Resolv{Servers: []netip.Addr{netip.MustParseAddr("9.9.9.9")}}, "nameserver 172.18.0.1\nsearch corp.example\noptions ndots:2\n"},
	} {
		got, err := ns.Resolv(t.Context(), c.es, c.want)
		if err != nil || got != c.text {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.text)
		}
	}
	if a, err := ns.HostGateways(t.Context(), own); err != nil || len(a) != 1 || a[0].String() != "172.18.0.1" {
		t.Errorf("host-gateway is %s, %v", a, err)
	}
}

func FuzzParseResolv(f *testing.F) {
	f.Add("nameserver 1.1.1.1\nsearch a b\noptions ndots:5\n")
	f.Add("nameserver ::1%eth0\ndomain x\n#\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := network.ParseResolv(strings.NewReader(text))
		again := network.ParseResolv(strings.NewReader(c.String()))
		if len(c.Servers) > 8 || !slices.Equal(c.Servers, again.Servers) {
			t.Errorf("%q: %v, then %v", text, c.Servers, again.Servers)
		}
	})
}
