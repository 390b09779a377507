package network

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

func TestChooseTakesTheFirstThatWorks(t *testing.T) {
	bad := errors.New("operation not permitted")
	for _, c := range []struct {
		f      Facts
		driver string
		why    string
		better string
	}{
		{Facts{}, BridgeDriver, "nftables", ""},
		{Facts{Packets: bad}, BridgeDriver, "nftables", ""},
		{Facts{Rules: bad}, UsernsDriver, "operation not permitted", BridgeDriver},
		{Facts{Forwarding: bad}, UsernsDriver, "does not route", BridgeDriver},
		{Facts{Namespaces: bad, Rules: bad}, "", "share the outer network", UsernsDriver},
		{Facts{Packets: bad, Rules: errors.New("no nftables")}, "", "share the outer network: operation not permitted", UsernsDriver},
		{Facts{OwnStack: true, Namespaces: bad}, SwitchDriver, "stacks of their own", UsernsDriver},
	} {
		got := Choose(c.f)
		if got.Driver != c.driver || !strings.Contains(got.Why, c.why) || got.Better != c.better || (got.BetterWhy == "") != (c.better == "") {
			t.Errorf("%+v: %+v, want %q, %q, %q", c.f, got, c.driver, c.why, c.better)
		}
	}
}

func TestProbeLeavesNothingAndSeesWhoDrops(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	f := Probe()
	if f.Namespaces != nil || f.Rules != nil || f.Forwarding != nil {
		t.Errorf("as root: %+v", f)
	}
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "den") {
			t.Errorf("left: device %s", l.Attrs().Name)
		}
	}
	c, err := nftables.New()
	must(t, err)
	tables, err := c.ListTables()
	if err != nil || len(tables) > 0 {
		t.Errorf("left: %v, %v", tables, err)
	}
	filter := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	drop := nftables.ChainPolicyDrop
	c.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: filter, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	must(t, c.Flush())
	if err := tryRules(); err == nil || !strings.Contains(err.Error(), "FORWARD") {
		t.Errorf("with a policy of drop: %v", err)
	}
}

func TestProbeAsAPlainUserSaysWhy(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("needs a plain user")
	}
	f := Probe()
	if f.Namespaces == nil || f.Rules == nil {
		t.Errorf("a plain user may all: %+v", f)
	}
	if got := Choose(f); got.Driver != "" || !strings.Contains(got.Why, "share the outer network") {
		t.Errorf("choice %+v", got)
	}
}
