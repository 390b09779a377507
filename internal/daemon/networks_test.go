package daemon

import (
	"maps"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"den/internal/network"
	"den/internal/sandbox"
)

func TestFlagsOfNetworks(t *testing.T) {
	o, err := EngineOptions{FixedCIDR: "10.9.8.0/24", Pools: []string{"base=10.10.0.0/16,size=24"}, DNS: []string{"9.9.9.9"}, MTU: 1300}.networks()
	if err != nil {
		t.Fatal(err)
	}
	if o.Bridge.String() != "10.9.8.1/24" || len(o.Pools) != 1 || o.Pools[0].Size != 24 || o.DNS[0].String() != "9.9.9.9" || o.MTU != 1300 {
		t.Errorf("options %+v", o)
	}
	o, err = EngineOptions{
		IPv6: true, FixedCIDR6: "fd00:9::/64", HostGateways: []string{"10.0.0.9", "fd00::9"}, PublishIP: "127.0.0.1", NoICC: true, NoHostLoopback: true,
		NetworkOptions: []string{"bridge=com.docker.network.driver.mtu=1400,a=b", "overlay=c=d"},
	}.networks()
	if err != nil {
		t.Fatal(err)
	}
	if o.Bridge6.String() != "fd00:9::/64" || o.BridgeRange6.IsValid() || len(o.HostGateways) != 2 || o.HostIP.String() != "127.0.0.1" || !o.Isolated || !o.NoHostLoopback ||
		!maps.Equal(o.Defaults, map[string]string{"com.docker.network.driver.mtu": "1400", "a": "b"}) {
		t.Errorf("options %+v", o)
	}
	o, err = EngineOptions{IPv6: true, BIP6: "fd00:9::5/64", FixedCIDR6: "fd00:9::/80", PublishIP: "0.0.0.0"}.networks()
	if err != nil || o.Bridge6.String() != "fd00:9::5/64" || o.BridgeRange6.String() != "fd00:9::/80" || o.HostIP.IsValid() {
		t.Errorf("options %+v, %v", o, err)
	}
	for _, e := range []EngineOptions{
		{IPv6: true, BIP6: "10.0.0.1/8"}, {FixedCIDR: "fd00::/64"}, {PublishIP: "all"}, {HostGateways: []string{"host"}}, {NetworkOptions: []string{"bridge=mtu"}},
		{BIP: "10.0.0.1"}, {FixedCIDR: "x"}, {DNS: []string{"dns.example"}},
		{Pools: []string{"base=10.0.0.0/16,size=8"}}, {Pools: []string{"10.0.0.0/16"}}, {Pools: []string{"size=24"}},
	} {
		if _, err := e.networks(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, want an invalid argument", e, err)
		}
	}
}

func TestNetworksInTheProcessAreOfOneProcess(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		claim := func() (*os.File, time.Duration, error) {
			begin := time.Now()
			f, err := claimSwitches(t.Context(), dir)
			return f, time.Since(begin), err
		}
		refused := func(most time.Duration) {
			t.Helper()
			if _, took, err := claim(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "--data-root") || took > most+time.Second {
				t.Errorf("a second one: %v after %v, want a refusal that names the flag within %v", err, took, most)
			}
		}
		first, _, err := claim()
		if err != nil {
			t.Fatal(err)
		}
		refused(noticeTime)
		// It is told to end, and takes long: the next one waits.
		go func() {
			time.Sleep(noticeTime / 2)
			(&Den{switches: first}).leaveSwitches()
			time.Sleep(switchTime / 2)
			if err := first.Close(); err != nil {
				t.Error(err)
			}
		}()
		second, took, err := claim()
		if err != nil || took < switchTime/2 {
			t.Fatalf("after %v: %v", took, err)
		}
		refused(noticeTime)
		(&Den{switches: second}).leaveSwitches()
		refused(switchTime)
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestRungsWithoutNamespacesHaveNoBridges(t *testing.T) {
	if c := network.Choose(networkFacts(sandbox.RungSentry)); c.Driver != network.SwitchDriver {
		t.Errorf("sentry: %+v", c)
	}
	if c := network.Choose(networkFacts(sandbox.RungChroot)); c.Driver != "" {
		t.Errorf("chroot: %+v", c)
	}
}
