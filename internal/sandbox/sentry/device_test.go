package sentry_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"den/internal/oci"
	"den/internal/sandbox"
	"den/internal/sandbox/sandboxtest"
	"den/internal/sandbox/sentry"
)

// cables is a wire between two devices.
func cables(t *testing.T) [2]*os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	pair := [2]*os.File{os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable")}
	t.Cleanup(func() { pair[0].Close(); pair[1].Close() })
	return pair
}

// device is one of two on a wire: .1 and .2.
func device(name string, cable *os.File, host byte) oci.Interface {
	return oci.Interface{
		Name: name, MAC: net.HardwareAddr{2, 0x42, 10, 88, 0, host}, MTU: 1500, Cable: cable,
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, host}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x88, 15: host}), 64)},
		Gateways:  []netip.Addr{netip.AddrFrom4([4]byte{10, 88, 0, 254})},
	}
}

// machine is a sandbox that runs until the test ends.
type machine struct {
	t *testing.T
	sandbox.Sandbox
}

// boot starts a sandbox with devices.
func boot(t *testing.T, e *sentry.Executor, network string, devices ...oci.Interface) *machine {
	t.Helper()
	b := sandboxtest.New(t, e)
	b.Link("bin/ping", "busybox")
	r := b.Request("while :; do sleep 60; done")
	r.Network, r.Interfaces = network, devices
	s, err := e.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Signal(unix.SIGKILL)
		if _, err := s.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &machine{t, s}
}

// do runs a script in a machine.
func (m *machine) do(script string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	spec, err := sandbox.DefaultSpec(sandbox.SpecOptions{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}})
	if err != nil {
		m.t.Fatal(err)
	}
	var out sandboxtest.Buffer
	x, err := m.Sandbox.(sandbox.Execer).Exec(ctx, &sandbox.ExecRequest{ID: "do", Process: spec.Process, Stdout: &out, Stderr: &out})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := x.Wait(ctx); err != nil {
		m.t.Fatal(err)
	}
	return out.String()
}

// contains fails the test if one of the words is missing.
func contains(t *testing.T, got string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(got, w) {
			t.Errorf("%q is missing in:\n%s", w, got)
		}
	}
}

func TestSandboxesWithDevicesReachEachOther(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	wire := cables(t)
	one, two := boot(t, e, "", device("eth0", wire[0], 1)), boot(t, e, "", device("eth0", wire[1], 2))
	contains(t, one.do("ping -c 2 -W 20 10.88.0.2"), " 0% packet loss")
	contains(t, two.do("ping -6 -c 2 -W 20 fd88::1"), " 0% packet loss")
	contains(t, one.do("ip addr; ip route; cat /proc/net/route /proc/net/dev"),
		"eth0", "10.88.0.1/24", "fd88::1/64", "127.0.0.1/8", "02:42:0a:58:00:01", "mtu 1500", "default via 10.88.0.254", "10.88.0.0/24",
		"eth0\t00000000\tFE00580A") // the gateway, as /proc/net/route writes it
	two.do("(nc -l -p 5432 </etc/passwd >/tmp/got 2>/dev/null &) ; while ! grep -q :1538 /proc/net/tcp*; do sleep 0.05; done")
	contains(t, one.do("echo hello | nc -w 20 10.88.0.2 5432"), "root:x:0:0")
	contains(t, two.do("while ! grep hello /tmp/got; do sleep 0.05; done"), "hello")
}

func TestDevicesComeAndGoWhileTheSandboxRuns(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	m := boot(t, e, sandbox.NetworkNone)
	peer := cables(t)
	other := boot(t, e, "", device("eth0", peer[1], 2))
	p := m.Sandbox.(sandbox.Plugger)
	if got := m.do("ip addr"); strings.Contains(got, "eth1") {
		t.Fatal(got)
	}
	if err := p.Plug(t.Context(), device("eth1", peer[0], 1)); err != nil {
		t.Fatal(err)
	}
	contains(t, m.do("ping -c 1 -W 20 10.88.0.2"), " 0% packet loss")
	if err := p.Plug(t.Context(), device("eth1", peer[0], 3)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second device of the name: %v", err)
	}
	if err := p.Unplug(t.Context(), "eth1"); err != nil {
		t.Fatal(err)
	}
	if got := m.do("ip addr; ip route"); strings.Contains(got, "eth1") || strings.Contains(got, "10.88") {
		t.Errorf("after it is unplugged:\n%s", got)
	}
	if err := p.Unplug(t.Context(), "eth1"); !errdefs.IsNotFound(err) {
		t.Errorf("unplugged twice: %v", err)
	}
	again := cables(t)
	if err := p.Plug(t.Context(), device("eth1", again[0], 1)); err != nil {
		t.Fatal(err)
	}
	if err := other.Sandbox.(sandbox.Plugger).Plug(t.Context(), device("eth1", again[1], 3)); err != nil {
		t.Fatal(err)
	}
	contains(t, m.do("ping -c 1 -W 20 10.88.0.3"), " 0% packet loss")
}

func TestBadDevicesAreRefused(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	wire := cables(t)
	good := device("eth0", wire[0], 1)
	for name, change := range map[string]func(*oci.Interface){
		"no name":   func(i *oci.Interface) { i.Name = "" },
		"lo":        func(i *oci.Interface) { i.Name = "lo" },
		"multicast": func(i *oci.Interface) { i.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"MTU":       func(i *oci.Interface) { i.MTU = 1 << 20 },
		"no cable":  func(i *oci.Interface) { i.Cable = nil },
		"address":   func(i *oci.Interface) { i.Addresses = []netip.Prefix{{}} },
	} {
		i := good
		change(&i)
		b := sandboxtest.New(t, e)
		r := b.Request("true")
		r.Interfaces = []oci.Interface{i}
		if _, _, err := b.Try(r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := boot(t, e, sandbox.NetworkHost)
	if err := m.Sandbox.(sandbox.Plugger).Plug(t.Context(), good); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("into the outer container's network: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Sandbox.(sandbox.Plugger).Unplug(ctx, "eth0"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestHostileFramesHarmNobody(t *testing.T) {
	e := newExecutor(t, sentry.Options{})
	wire := cables(t)
	m := boot(t, e, "", device("eth0", wire[0], 1))
	for _, frame := range [][]byte{{}, {1}, bytes.Repeat([]byte{0xff}, 13), bytes.Repeat([]byte{0xff}, 14), bytes.Repeat([]byte{8}, 9000), make([]byte, 60000)} {
		if err := unix.Send(int(wire[1].Fd()), frame, 0); err != nil {
			t.Fatal(err)
		}
	}
	contains(t, m.do("ip addr"), "10.88.0.1/24")
	wire[1].Close()
	contains(t, m.do("ping -c 1 127.0.0.1"), " 0% packet loss")
}
