package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
)

// A Side is how a den-net reaches the containers of its network.
type Side interface {
	// Listen and ListenPacket open a port of the gateway's addresses to containers.
	Listen(port uint16) ([]net.Listener, error)
	ListenPacket(port uint16) ([]net.PacketConn, error)
	// Publish hands connections that l accepts to a container's port until the Closer
	// is closed, which closes l and ends them. PublishUDP does so with datagrams.
	Publish(l *net.TCPListener, to netip.AddrPort) (io.Closer, error)
	PublishUDP(c *net.UDPConn, to netip.AddrPort) (io.Closer, error)
	// Namespace is the network namespace of the bridge, which the den-net keeps, for
	// drivers whose bridge is not in the outer one; else nil.
	Namespace() *os.File
	Close() error
}

// A Link is a driver's part of a den-net: it makes its Side of the network n, whose
// directory is dir.
type Link struct {
	Driver string
	Open   func(ctx context.Context, dir string, n *Network) (Side, error)
	// Down, if not nil, takes away what else there is of n, when a den-net ends because
	// nobody needs it.
	Down func(n *Network) error
}
