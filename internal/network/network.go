// Package network gives containers networks: names, subnets, addresses, names
// that resolve, published ports.
//
// A Network and its endpoints are files of one engine's directory, so that any
// number of den processes agree on who has which address; what makes frames move
// is a Driver's. Rules that every driver keeps:
//
//   - A gateway answers for no address that is not its own, and forwards nothing
//     into its own subnet.
//   - Networks do not reach each other but through published ports.
//   - Nothing outside the outer container's network namespace is changed, and
//     there nothing but what carries den's name.
package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"den/internal/oci"
)

// A Network is what its record on disk says. It does not change but for its endpoints.
type Network struct {
	ID      string            `json:"id"` // 64 hex digits
	Name    string            `json:"name"`
	Created time.Time         `json:"created"`
	Subnets []Subnet          `json:"subnets"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"` // docker's driver options
	// Internal networks reach nothing outside.
	Internal   bool `json:"internal,omitempty"`
	Attachable bool `json:"attachable,omitempty"`
	IPv6       bool `json:"ipv6,omitempty"`
	// Isolated forbids containers to reach each other (com.docker.network.bridge.enable_icc=false).
	Isolated bool `json:"isolated,omitempty"`
	// Default is the network "bridge", which resolves no names of containers but links.
	Default bool `json:"default,omitempty"`
	// Configured says that a user chose the subnets, so that addresses can be asked for.
	Configured bool `json:"configured,omitempty"`
	// MTU in bytes; inherited from the outer route unless asked for, as AskedMTU says.
	MTU      int  `json:"mtu"`
	AskedMTU bool `json:"askedMTU,omitempty"`
	// NoHostLoopback is Options.NoHostLoopback.
	NoHostLoopback bool `json:"noHostLoopback,omitempty"`
}

// A Subnet is one range of addresses of a network.
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix"`
	Gateway netip.Addr   `json:"gateway"`
	// Range, if valid, is the part of Prefix that addresses are given from.
	Range netip.Prefix `json:"range,omitzero"`
	// Auxiliary addresses are never given.
	Auxiliary map[string]netip.Addr `json:"auxiliary,omitempty"`
}

// An EndpointRequest asks to connect a container to a network.
type EndpointRequest struct {
	Network string // name or id
	// Container is the container's id, Name its name, which resolves as Aliases do.
	Container, Name string
	Aliases         []string
	// IPv4, IPv6 and MAC are asked for; zero takes what is free.
	IPv4, IPv6 netip.Addr
	MAC        net.HardwareAddr
	Ports      []Port
	// Links are further names that resolve for this container only, as of --link.
	Links map[string]string // name -> container's id
	// DNS are servers that this container's other questions are forwarded to (--dns).
	DNS []netip.Addr
	// Priority ranks the endpoints of a container for the default route; the highest wins.
	Priority int
}

// A Port is one published port of a container, or a range of the same length on both sides.
type Port struct {
	Protocol  string     `json:"protocol"` // tcp, udp
	Container uint16     `json:"container"`
	HostIP    netip.Addr `json:"hostIP"` // invalid: every address of both families
	// Host is 0 for a free one, or the first of HostEnd-Host+1 of which one free is taken.
	Host    uint16 `json:"host"`
	HostEnd uint16 `json:"hostEnd,omitempty"`
}

// An Endpoint is a container's place in a network; its record is written by Connect.
type Endpoint struct {
	ID        string            `json:"id"`
	Network   string            `json:"network"` // id
	Container string            `json:"container"`
	Name      string            `json:"name"`
	Aliases   []string          `json:"aliases,omitempty"`
	Links     map[string]string `json:"links,omitempty"`
	DNS       []netip.Addr      `json:"dns,omitempty"`
	Priority  int               `json:"priority,omitempty"`
	// Gateway says that the container's default route, and its published ports, are here.
	Gateway bool         `json:"gateway,omitempty"`
	Device  string       `json:"device"` // eth0, in the container
	MAC     string       `json:"mac"`
	IPv4    netip.Prefix `json:"ipv4,omitzero"`
	IPv6    netip.Prefix `json:"ipv6,omitzero"`
	Ports   []Port       `json:"ports,omitempty"` // as assigned: Host is never 0
}

// A Driver is one way to move frames: kernel bridges (privileged), a kernel bridge
// with a user-space gateway (userns), a switch in this process (sentry).
// All methods may be called by several processes at once and are idempotent.
type Driver interface {
	Name() string
	// Up makes the network pass frames; Down takes it away, when it has no endpoints.
	Up(ctx context.Context, n *Network) error
	Down(ctx context.Context, n *Network) error
	// NewSpace makes what a container's stack lives in: a network namespace with a
	// loopback device, or nothing but an identity where each sandbox has its own stack.
	NewSpace(ctx context.Context, container string) (Space, error)
	// OpenSpace is the space of a container that runs: pid is its payload's, as den sees it.
	OpenSpace(ctx context.Context, container string, pid int) (Space, error)
	// Connect puts the endpoint's device into s; Disconnect takes it out. gateway
	// says that the default route goes there.
	Connect(ctx context.Context, s Space, n *Network, e *Endpoint, gateway bool) error
	Disconnect(ctx context.Context, s Space, n *Network, e *Endpoint) error
	// Publish opens the endpoint's ports and returns them as assigned; Withdraw closes them.
	Publish(ctx context.Context, n *Network, e *Endpoint) ([]Port, error)
	Withdraw(ctx context.Context, n *Network, e *Endpoint) error
	// Names tells who answers for the network's names what they are now.
	Names(ctx context.Context, n *Network, z *Zone) error
	// Resolver is the address that the containers' resolv.conf names; invalid if
	// they get the outer one.
	Resolver(n *Network) netip.Addr
}

// A Zone is all that a network's DNS server knows by itself.
type Zone struct {
	Names []Name `json:"names,omitempty"`
	// Reverse are the names of addresses.
	Reverse map[netip.Addr]string `json:"reverse,omitempty"`
	// Forward are the servers that a client's other questions go to, by the client's
	// address, where they are not the outer resolv.conf's.
	Forward map[netip.Addr][]netip.Addr `json:"forward,omitempty"`
}

// A Name is one that the network's DNS answers.
type Name struct {
	Name string `json:"name"`
	// For, if not empty, are the only clients that see it.
	For       []netip.Addr `json:"for,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
}

// A Space is where a container's network devices are.
type Space interface {
	// Namespace is the network namespace, which the sandbox is started in; nil where
	// the sandbox has its own stack.
	Namespace() *os.File
	// Interfaces are the devices for the sandbox's own stack, before it starts.
	Interfaces() []oci.Interface
	// SetPlug is told how to put devices into the sandbox once it runs, where it has
	// its own stack, and how to take them out.
	SetPlug(plug func(context.Context, oci.Interface) error, unplug func(ctx context.Context, name string) error)
	// Close releases this process's hold; the sandbox keeps its own.
	Close() error
}
