package userns

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"den/internal/network"
)

// What the engine is told of the outer loopback device holds for containers that run, too.
func TestContainersMayBeKeptFromTheOuterLoopback(t *testing.T) {
	if !enter(t) {
		return
	}
	dir := filepath.Join(t.TempDir(), "networks")
	all := networksIn(t, dir, network.Options{MTU: 1500})
	n, err := all.Create(t.Context(), network.CreateRequest{Name: "app"})
	must(t, err)
	c := attach(t, all, "c1", network.EndpointRequest{Network: "app"})
	outer := netip.AddrPortFrom(n.Gateways()[0], serve(t, nil, "127.0.0.1:0").Port())
	conn, err := c.dial(t, "tcp", outer)
	if got := say(t, conn, err, "hello"); got != "127.0.0.1 hello" {
		t.Errorf("outside says %q", got)
	}
	all = networksIn(t, dir, network.Options{MTU: 1500, NoHostLoopback: true})
	must(t, all.Reconcile(t.Context(), func(string) bool { return true }))
	// Its device went with the den-net before, and the test is no process that could be found.
	n, err = all.Network(t.Context(), "app")
	must(t, err)
	ns, err := all.Driver().(*Driver).Namespace(t.Context(), n)
	must(t, err)
	defer ns.Close()
	must(t, network.PlugPair(ns, bridgeName, c.ns, n, &c.e, true))
	if _, err := c.dial(t, "tcp", outer); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the outer loopback device: %v, want refused", err)
	}
}
