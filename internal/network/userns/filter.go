package userns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// filter puts the filter on the packet socket that leaves out what is the kernel's.
func (d *direct) filter() error {
	taken := slices.SortedFunc(maps.Keys(d.taken), netip.AddrPort.Compare)
	code, err := bpf.Assemble(filterFor(taken, d.ports))
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	// Two structures of the same layout, struct sock_filter of <linux/filter.h>.
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
	if err := unix.SetsockoptSockFprog(d.packet, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	return nil
}

// filterFor passes all frames but those of TCP over IPv4 from one of the places to one of
// the local ports.
func filterFor(places []netip.AddrPort, ports portRange) []bpf.Instruction {
	const pass = 1 << 30 // more bytes than a frame has
	// What is too short for a load is dropped (bpf(2)); offsets are those of Ethernet, RFC 791 and RFC 9293.
	f := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 9},
		bpf.LoadAbsolute{Off: 14 + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 7},
		bpf.LoadAbsolute{Off: 14 + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 5}, // a later fragment
		bpf.LoadMemShift{Off: 14},
		bpf.LoadIndirect{Off: 14 + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(ports.first), SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(ports.last), SkipTrue: 1},
		bpf.Jump{Skip: 1},
		bpf.RetConstant{Val: pass},
		bpf.LoadIndirect{Off: 14, Size: 2},
		bpf.StoreScratch{Src: bpf.RegA},
	}
	for _, p := range places {
		a := p.Addr().As4()
		f = append(f,
			bpf.LoadAbsolute{Off: 14 + 12, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3]), SkipFalse: 3},
			bpf.LoadScratch{Dst: bpf.RegA},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(p.Port()), SkipFalse: 1},
			bpf.RetConstant{Val: 0})
	}
	return append(f, bpf.RetConstant{Val: pass})
}
