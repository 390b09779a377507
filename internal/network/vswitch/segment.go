// Package vswitch joins sandboxes that have a network stack of their own: a switch
// of Ethernet frames in den's process, one segment a network, each with a gateway.
//
// Rules that make it safe:
//
//   - A port sends from its own hardware address and its own addresses, and answers
//     for no others; redirects and router advertisements come from nobody (see identity).
//   - Nothing is learned from frames: who is where is what the driver says.
//   - A port whose sandbox does not read loses frames; it holds nobody else up for
//     longer than patience, and no frame is kept.
//
// Nothing of it is on disk, and all of it ends with the process, as the sandboxes do.
package vswitch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MTU is that of segments, unless a network asks for another: frames cost the same
	// whatever their size, and no wire limits them.
	MTU = 65000
	// maxFrame is the largest frame that a port may send.
	maxFrame = 65535 + ethernetHeader
	// cableBytes is asked for cables' buffers; the kernel gives what net.core.wmem_max allows.
	cableBytes = 4 << 20
	// patience bounds how long a sender waits for a receiver that does not read.
	patience = 20 * time.Millisecond
)

type hardware [6]byte

// A segment is one network: ports, and the uplink to its gateway.
type segment struct {
	isolated bool // ports reach the uplink only
	uplink   *uplink

	mu    sync.RWMutex
	ports map[hardware]*port // nil once closed
}

func newSegment(mac net.HardwareAddr, mtu int, isolated bool) *segment {
	s := &segment{isolated: isolated, ports: map[hardware]*port{}}
	s.uplink = &uplink{segment: s, mac: hardware(mac), mtu: uint32(mtu)}
	return s
}

// A port is a sandbox's place on a segment.
type port struct {
	segment *segment
	id      identity
	cable   *os.File
	raw     syscall.RawConn
	gateway bool          // the device has the default route; the driver's
	done    chan struct{} // closed when nothing reads the cable any more

	writing sync.Mutex  // of those who wait
	stalled atomic.Bool // the sandbox does not read
}

// newCable is a pair of connected sockets: the switch's end and the sandbox's.
func newCable() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cable: %w", err)
	}
	for _, fd := range fds {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, cableBytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, cableBytes) // a smaller one works
		}
	}
	// Non-blocking before os.NewFile, so that the runtime waits for it.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable"), nil
}

// errTaken says that a hardware address is another port's.
var errTaken = errors.New("hardware address in use")

// add plugs cable in; the segment owns it then. The port goes when the other end of the
// cable is closed, or with remove.
func (s *segment) add(cable *os.File, mac net.HardwareAddr, addresses []netip.Addr) (*port, error) {
	raw, err := cable.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &port{segment: s, id: newIdentity(mac, addresses), cable: cable, raw: raw, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports == nil {
		return nil, net.ErrClosed
	}
	if s.ports[p.id.mac] != nil || p.id.mac == s.uplink.mac {
		return nil, fmt.Errorf("port %s: %w", mac, errTaken)
	}
	s.ports[p.id.mac] = p
	go p.read()
	return p, nil
}

// remove pulls a port out, and returns when nothing of it is under way.
func (s *segment) remove(p *port) {
	s.forget(p)
	_ = p.cable.Close()
	<-p.done
}

func (s *segment) forget(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[p.id.mac] == p {
		delete(s.ports, p.id.mac)
	}
}

// close pulls all ports out.
func (s *segment) close() {
	s.mu.Lock()
	ports := s.ports
	s.ports = nil
	s.mu.Unlock()
	for _, p := range ports {
		_ = p.cable.Close()
		<-p.done
	}
}

// read switches what the sandbox sends until its end of the cable is closed.
func (p *port) read() {
	defer close(p.done)
	defer func() { _ = p.cable.Close() }()
	defer p.segment.forget(p)
	b := make([]byte, maxFrame)
	for {
		n, err := p.cable.Read(b)
		if err != nil || n == 0 {
			return
		}
		if p.id.admits(b[:n]) {
			p.segment.forward(p, b[:n])
		}
	}
}

// forward sends a frame that from was allowed to send where it belongs; from is nil for the uplink.
func (s *segment) forward(from *port, frame []byte) {
	to := hardware(frame[:6])
	if to[0]&1 == 1 {
		if from != nil {
			s.uplink.deliver(frame)
		}
		for _, p := range s.others(from) {
			p.try(frame) // nobody waits for the slowest of all
		}
		return
	}
	if to == s.uplink.mac {
		if from != nil {
			s.uplink.deliver(frame)
		}
		return
	}
	s.mu.RLock()
	p := s.ports[to]
	s.mu.RUnlock()
	if p != nil && p != from && (from == nil || !s.isolated) {
		p.send(frame)
	}
}

// others are the ports that a frame for many goes to.
func (s *segment) others(from *port) []*port {
	if s.isolated && from != nil {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	ps := make([]*port, 0, len(s.ports))
	for _, p := range s.ports {
		if p != from {
			ps = append(ps, p)
		}
	}
	return ps
}

// try writes a frame if there is room for it.
func (p *port) try(frame []byte) bool {
	var err error
	if p.raw.Control(func(fd uintptr) { err = write(fd, frame) }) != nil {
		return true // closed: it is as good as sent
	}
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	p.stalled.Store(false)
	return true
}

// send writes a frame and waits a moment if there is no room, so that a fast sender
// finds the receiver's pace; then it is lost, and so are the next ones without a wait.
func (p *port) send(frame []byte) {
	if p.try(frame) || p.stalled.Load() {
		return
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.stalled.Load() || p.cable.SetWriteDeadline(time.Now().Add(patience)) != nil {
		return
	}
	err := p.raw.Write(func(fd uintptr) bool { return !errors.Is(write(fd, frame), unix.EAGAIN) })
	p.stalled.Store(errors.Is(err, os.ErrDeadlineExceeded))
}

func write(fd uintptr, frame []byte) error {
	for {
		if _, err := unix.Write(int(fd), frame); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
