package network

import (
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// The switches that make the kernel of this network namespace route.
const (
	forwarding4 = "ipv4/ip_forward"
	forwarding6 = "ipv6/conf/all/forwarding"
)

// allowForwarding turns on what makes the outer container's kernel route. Without
// IPv4 a network is not what was asked for; without IPv6, which few outer
// containers have, it is as one in a world without IPv6 (see Connect).
func allowForwarding(n *Network) error {
	if n.family(true) != nil && !forwards(forwarding6) {
		keepRoutes()
		_ = os.WriteFile("/proc/sys/net/"+forwarding6, []byte("1"), 0)
	}
	if n.family(false) == nil || forwards(forwarding4) {
		return nil
	}
	if err := os.WriteFile("/proc/sys/net/"+forwarding4, []byte("1"), 0); err != nil {
		return fmt.Errorf("network %s: net.ipv4.ip_forward is 0 and cannot be written (%w): start the outer container with --sysctl net.ipv4.ip_forward=1, or use internal networks", n.Name, cause(err))
	}
	return nil
}

// keepRoutes makes devices that learn their routes from routers go on doing so once the
// kernel routes itself, which otherwise ends that (accept_ra in the kernel's ip-sysctl.rst).
func keepRoutes() {
	links, err := netlink.LinkList()
	if err != nil {
		return
	}
	for _, l := range links {
		path := "/proc/sys/net/ipv6/conf/" + l.Attrs().Name + "/accept_ra"
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == "1" {
			_ = os.WriteFile(path, []byte("2"), 0)
		}
	}
}

// forwards says whether a switch is on.
func forwards(name string) bool {
	b, err := os.ReadFile("/proc/sys/net/" + name)
	return err == nil && strings.TrimSpace(string(b)) != "0"
}
