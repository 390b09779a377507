package network

import (
	"context"
	"errors"

	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// crashEnv is the directory of networks in which this program lives a short life.
const crashEnv = "DEN_TEST_CRASH"

// liveOnce does all that changes networks, in order.
func liveOnce(dir string) error {
	ctx := context.Background()
	d, err := NewBridge(dir)
	if err != nil {
		return err
	}
	ns, err := Open(dir, d, Options{})
	if err != nil {
		return err
	}
	if _, err := ns.Create(ctx, CreateRequest{Name: "n"}); err != nil {
		return err
	}
	ports := []Port{{Protocol: "tcp", Container: 80}, {Protocol: "udp", Container: 80}}
	s, _, err := ns.Attach(ctx, "c", []EndpointRequest{{Network: "n", Name: "c", Ports: ports}})
	if err != nil {
		return err
	}
	return errors.Join(ns.Release(ctx, "c"), s.Close(), ns.Remove(ctx, "n"))
}

// Whoever dies wherever, what follows finds all and takes it back: the cleanup of
// bridges fails for any device, rule or port that is left.
func TestNothingIsLeftOfAKilledProcess(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	world(t)
	for _, point := range []string{
		"network.create.rename", "network.join.up", "network.join.connect", "network.join.publish", "network.publish.record",
		"network.part.disconnect", "network.part.forget", "network.part.down", "network.remove.rename", "network.remove.files",
	} {
		t.Run(point, func(t *testing.T) {
			ns := bridges(t)
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), crashEnv+"="+ns.dir, "DEN_FAILPOINTS="+point+"=kill")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed: %v\n%s", err, out)
			}
			must(t, ns.Reconcile(t.Context(), func(string) bool { return false }))
			left, err := filepath.Glob(filepath.Join(ns.dir, ".*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			all, err := ns.List(t.Context())
			must(t, err)
			for _, n := range all {
				k := ns.driver.(*Bridge)
				if es, err := ns.Endpoints(t.Context(), n.ID); err != nil || len(es) > 0 || k.Alive(n) {
					t.Errorf("network %s: endpoints %v, %v; den-net alive: %t", n.Name, es, err, k.Alive(n))
				}
			}
			// And the next one lives as if nothing had been.
			if err := ns.Remove(t.Context(), "n"); err != nil && !strings.Contains(err.Error(), "not found") {
				t.Error(err)
			}
			must(t, liveOnce(ns.dir))
		})
	}
}
