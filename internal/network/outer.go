package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ReadOuter asks the kernel for the routes of this network namespace.
func ReadOuter() (Outer, error) {
	var o Outer
	links := map[int]int{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := netlink.RouteList(nil, family)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return o, fmt.Errorf("read the outer network's routes: %w", err)
		}
		for _, r := range routes {
			p, ok := prefix(r.Dst, family)
			if !ok {
				continue
			}
			if p.Bits() > 0 {
				o.Used = append(o.Used, p)
			} else if _, seen := links[r.LinkIndex]; !seen {
				links[r.LinkIndex] = r.Priority
			}
		}
	}
	best := -1
	for index, priority := range links {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			continue // gone meanwhile, or a route of several hops
		}
		if best < 0 || priority < best {
			best, o.MTU = priority, link.Attrs().MTU
		}
	}
	return o, nil
}
