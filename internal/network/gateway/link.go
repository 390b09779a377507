package gateway

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// socketBufferBytes is asked for links' sockets; the kernel gives what
// net.core.wmem_max and rmem_max allow. A stack drops what does not fit.
const socketBufferBytes = 8 << 20

// gsoBytes is the largest packet that crosses a packet socket in one piece.
const gsoBytes = 65000

// PacketLink is a link on an AF_PACKET socket (SOCK_RAW, not yet bound) of a bridge's
// network namespace: it is bound to the bridge itself, the device with number index
// and the address mac, which has no IP address there, or the kernel would answer too.
// fd stays the caller's and must outlive the gateway.
//
// Packets cross it as the kernel has them, up to 64 KiB and without checksums
// (PACKET_VNET_HDR): without that, TCP towards containers is ten times slower or, if
// checksums were verified, hangs. Trusting them is sound, nothing here crossed a wire.
func PacketLink(fd, index int, mac net.HardwareAddr, mtu int) (stack.LinkEndpoint, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return nil, fmt.Errorf("packet socket: PACKET_VNET_HDR: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return nil, fmt.Errorf("packet socket: PACKET_IGNORE_OUTGOING (Linux 4.20): %w", err)
	}
	widen(fd)
	all := uint16(unix.ETH_P_ALL)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: index}); err != nil {
		return nil, fmt.Errorf("packet socket: bind to device %d: %w", index, err)
	}
	return fdbased.New(&fdbased.Options{
		FDs: []int{fd}, MTU: uint32(mtu), EthernetHeader: true, Address: tcpip.LinkAddress(mac),
		PacketDispatchMode: fdbased.RecvMMsg, ProcessorsPerChannel: 1, RXChecksumOffload: true, GSOMaxSize: gsoBytes,
	})
}

// CableLink is a link on one end of a SOCK_SEQPACKET pair, a frame a packet. fd stays
// the caller's and must outlive the gateway.
func CableLink(fd int, mac net.HardwareAddr, mtu int) (stack.LinkEndpoint, error) {
	widen(fd)
	return fdbased.New(&fdbased.Options{
		FDs: []int{fd}, MTU: uint32(mtu), EthernetHeader: true, Address: tcpip.LinkAddress(mac),
		PacketDispatchMode: fdbased.RecvMMsg, ProcessorsPerChannel: 1, RXChecksumOffload: true,
	})
}

// widen enlarges the socket's buffers as far as it is allowed.
func widen(fd int) {
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBufferBytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBufferBytes) // smaller ones work, too
		}
	}
}
