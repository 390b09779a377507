package userns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"den/internal/network"
)

const (
	// dialTimeout bounds how long a container may take to accept.
	dialTimeout = 30 * time.Second
	// maxDirect bounds the containers' ports that are reached so: each is a rule that every
	// packet of the bridge is compared with, and a part of the filter, whose memory the kernel bounds.
	maxDirect = 128
	// localTable is the routing table whose every address is the namespace's own.
	localTable = 100
)

// A direct reaches containers by the kernel's TCP, from the bridge's namespace: published
// ports are spliced by the kernel then, and pass no stack in user space.
//
// The bridge has no address there, so its sockets have those of others (IP_TRANSPARENT): the
// client's own, or the gateway's, as the gateway's have. What a container's published port
// answers is the kernel's by a rule of routing, if it goes to one of the local ports that the kernel
// gives, and a filter keeps it from the gateway's packet socket. All else is the gateway's. So a container that
// connects from its published port to one of those of somebody else gets no answer.
type direct struct {
	packet int // the gateway's
	ports  portRange
	do     chan func() // is run in the namespace
	ended  chan struct{}

	mu    sync.Mutex
	taken map[netip.AddrPort]int // publications, by where they lead
}

// A portRange is both ends, inclusively.
type portRange struct{ first, last uint16 }

// openDirect prepares the namespace ns with the bridge of number index.
func openDirect(ns *os.File, n *network.Network, index, packet int) (*direct, error) {
	d := &direct{packet: packet, do: make(chan func()), ended: make(chan struct{}), taken: map[netip.AddrPort]int{}}
	ready := make(chan error, 1)
	go func() {
		defer close(d.ended)
		// Its sockets come from one thread that stays there: to start one for each takes longer than to connect.
		err := network.In(ns, func() error {
			err := d.prepare(n, index)
			ready <- err
			if err != nil {
				return nil
			}
			for f := range d.do {
				f()
			}
			return nil
		})
		if err != nil {
			ready <- err
		}
	}()
	if err := <-ready; err != nil {
		<-d.ended
		return nil, err
	}
	return d, nil
}

// prepare makes routes in the present namespace: containers are on the bridge, and in
// localTable everything is here.
func (d *direct) prepare(n *network.Network, index int) error {
	// Connections that clients end leave their ports waiting for a minute, unless the next
	// one may take them. Where /proc/sys is read-only, the gateway helps out.
	_ = os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1"), 0)
	if err := d.readPorts(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if !s.Prefix.Addr().Is4() {
			continue
		}
		to := &net.IPNet{IP: s.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(s.Prefix.Bits(), 32)}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to %s: %w", s.Prefix, err)
		}
	}
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	err = netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Table: localTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST})
	if err != nil {
		return fmt.Errorf("local routes: %w", err)
	}
	return nil
}

// readPorts reads the range of the namespace's local ports.
func (d *direct) readPorts() error {
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(strings.TrimSpace(string(b)), &d.ports.first, &d.ports.last); err != nil || d.ports.first < minLocalPort || d.ports.last < d.ports.first {
		return fmt.Errorf("%s: %.40q is no range from %d on", file, b, minLocalPort)
	}
	return nil
}

// close ends the thread; the namespace's rules go with it.
func (d *direct) close() {
	close(d.do)
	<-d.ended
}

// within runs f in the namespace.
func (d *direct) within(f func() error) error {
	done := make(chan error, 1)
	d.do <- func() { done <- f() }
	return <-done
}

var errDirect = errors.New("not by the kernel")

// add leads what the port answers to the kernel.
func (d *direct) add(to netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.taken[to] > 0:
	case !to.Addr().Is4():
		return fmt.Errorf("%w: an address of IPv6", errDirect) // the kernel asks for neighbours of IPv6 from an address of its own only
	case len(d.taken) >= maxDirect:
		return fmt.Errorf("%w: more than %d ports", errDirect, maxDirect)
	default:
		d.taken[to] = 0
		err := d.within(func() error {
			if err := d.filter(); err != nil {
				return err
			}
			return netlink.RuleAdd(d.rule(to))
		})
		if err != nil {
			delete(d.taken, to)
			return errors.Join(fmt.Errorf("lead %s to the kernel: %w", to, err), d.within(d.filter))
		}
	}
	d.taken[to]++
	return nil
}

// remove takes back one add.
func (d *direct) remove(to netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.taken[to]--; d.taken[to] > 0 {
		return nil
	}
	delete(d.taken, to)
	return d.within(func() error { return errors.Join(netlink.RuleDel(d.rule(to)), d.filter()) })
}

func (d *direct) rule(from netip.AddrPort) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority = unix.AF_INET, localTable, 1
	r.IifName, r.IPProto = bridgeName, unix.IPPROTO_TCP
	r.Src = &net.IPNet{IP: from.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}
	r.Sport = netlink.NewRulePortRange(from.Port(), from.Port())
	r.Dport = netlink.NewRulePortRange(d.ports.first, d.ports.last)
	return r
}

// dial connects to a container in the name of from.
func (d *direct) dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	var fd int
	err := d.within(func() (err error) {
		fd, err = connect(from, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection to a container")
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	t := c.(*net.TCPConn)
	if err := connected(ctx, t); err != nil {
		return nil, errors.Join(fmt.Errorf("dial container %s: %w", to, err), t.Close())
	}
	return t, nil
}

// connect begins a connection in the present namespace.
func connect(from netip.Addr, to netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	for _, option := range []int{unix.IP_TRANSPARENT, unix.IP_BIND_ADDRESS_NO_PORT} { // the second: connect chooses, which may use a port for several containers
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_IP, option, 1)
		}
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// connected waits for the answer to connect.
func connected(ctx context.Context, c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })()
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if failed = err; err != nil {
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}
