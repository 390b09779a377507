package oci

import (
	"net"
	"net/netip"
	"os"
)

// An Interface is one network device of a sandbox that has a network stack of
// its own (the sentry): network makes it, sandbox puts it in. Sandboxes in kernel
// namespaces get a network namespace instead.
type Interface struct {
	// Name is the device's inside the sandbox, such as "eth0".
	Name string
	MAC  net.HardwareAddr
	MTU  int
	// Addresses are the device's own, each with the length of its subnet's prefix.
	Addresses []netip.Prefix
	// Gateways are the next hops of the default routes; none if this device has none.
	Gateways []netip.Addr
	// Cable is the sandbox's end of a SOCK_SEQPACKET pair; a packet is an Ethernet frame.
	Cable *os.File
}
