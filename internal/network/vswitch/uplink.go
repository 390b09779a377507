package vswitch

import (
	"sync"

	pktbuf "gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// An uplink is a segment's port for the gateway's stack: a link endpoint that carries
// frames, below one that makes them of packets.
type uplink struct {
	segment *segment
	mac     hardware
	mtu     uint32
	frames  sync.Pool

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

// deliver hands a frame to the stack, which keeps a copy.
func (u *uplink) deliver(frame []byte) {
	u.mu.RLock()
	d := u.dispatcher
	u.mu.RUnlock()
	if d == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: pktbuf.MakeWithData(frame)})
	pkt.RXChecksumValidated = true // it crossed no wire
	d.DeliverNetworkPacket(0, pkt)
	pkt.DecRef()
}

// WritePackets sends frames of the stack.
func (u *uplink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	b, ok := u.frames.Get().(*[maxFrame]byte)
	if !ok {
		b = new([maxFrame]byte)
	}
	defer u.frames.Put(b)
	for _, pkt := range pkts.AsSlice() {
		n := 0
		for _, s := range pkt.AsSlices() {
			n += copy(b[n:], s)
		}
		if n >= ethernetHeader {
			u.segment.forward(nil, b[:n])
		}
	}
	return pkts.Len(), nil
}

// MTU is of frames: the endpoint above takes its header off.
func (u *uplink) MTU() uint32 { return u.mtu + ethernetHeader }

// SetMTU does nothing: a segment's is fixed.
func (u *uplink) SetMTU(uint32) {}

// MaxHeaderLength is that of frames below Ethernet: none.
func (u *uplink) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is the gateway's.
func (u *uplink) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(u.mac[:]) }

// SetLinkAddress does nothing: a segment knows its gateway by it.
func (u *uplink) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities say that frames arrive as they were sent.
func (u *uplink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach is told who takes frames.
func (u *uplink) Attach(d stack.NetworkDispatcher) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dispatcher = d
}

// IsAttached reports whether anybody takes frames.
func (u *uplink) IsAttached() bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.dispatcher != nil
}

// Wait has nobody to wait for: ports deliver.
func (u *uplink) Wait() {}

// ARPHardwareType is that of the endpoint above.
func (u *uplink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader and ParseHeader are the business of the endpoint above.
func (u *uplink) AddHeader(*stack.PacketBuffer) {}

// ParseHeader says that there is no header.
func (u *uplink) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close does nothing: segments are closed by their driver.
func (u *uplink) Close() {}

// SetOnCloseAction is not needed: the segment outlives its gateway.
func (u *uplink) SetOnCloseAction(func()) {}
