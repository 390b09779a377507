package userns

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

// frame is of TCP over IPv4, with n bytes of options.
func frame(options int, from, to netip.AddrPort) []byte {
	b := make([]byte, 14+20+options+20)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	b[14], b[14+9] = 0x45+byte(options/4), 6
	copy(b[26:], from.Addr().AsSlice())
	copy(b[30:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[34+options:], from.Port())
	binary.BigEndian.PutUint16(b[36+options:], to.Port())
	return b
}

func TestTheFilterLeavesOutAnswersOfPublishedPorts(t *testing.T) {
	places := []netip.AddrPort{netip.MustParseAddrPort("172.18.0.2:80"), netip.MustParseAddrPort("172.18.0.3:443"), netip.MustParseAddrPort("172.18.0.3:80")}
	vm, err := bpf.NewVM(filterFor(places, portRange{32768, 60999}))
	must(t, err)
	between := func(from, to string) []byte {
		return frame(0, netip.MustParseAddrPort(from), netip.MustParseAddrPort(to))
	}
	udp := between("172.18.0.2:80", "172.18.0.1:40000")
	udp[23] = 17
	later := between("172.18.0.2:80", "172.18.0.1:40000")
	binary.BigEndian.PutUint16(later[20:], 100)
	v6 := between("172.18.0.2:80", "172.18.0.1:40000")
	binary.BigEndian.PutUint16(v6[12:], 0x86dd)
	for _, c := range []struct {
		name  string
		frame []byte
		pass  bool
	}{
		{"an answer", between("172.18.0.2:80", "172.18.0.1:32768"), false},
		{"the last port", between("172.18.0.3:443", "203.0.113.9:60999"), false},
		{"one with options", frame(40, places[2], netip.MustParseAddrPort("172.18.0.1:40000")), false},
		{"to a port below", between("172.18.0.2:80", "172.18.0.1:32767"), true},
		{"to a port above", between("172.18.0.2:80", "172.18.0.1:61000"), true},
		{"from another port", between("172.18.0.2:443", "172.18.0.1:40000"), true},
		{"from another container", between("172.18.0.4:80", "172.18.0.1:40000"), true},
		{"a datagram", udp, true},
		{"a later fragment", later, true},
		{"IPv6", v6, true},
		{"one that is cut off", between("172.18.0.2:80", "172.18.0.1:40000")[:30], false},
	} {
		if n, err := vm.Run(c.frame); err != nil || (n > 0) != c.pass {
			t.Errorf("%s: %d bytes pass, %v", c.name, n, err)
		}
	}
	if n, err := vm.Run(make([]byte, 14)); n == 0 || err != nil {
		t.Errorf("another protocol's: %d bytes pass, %v", n, err)
	}
}

func TestTheLargestFilterIsOneForTheKernel(t *testing.T) {
	var places []netip.AddrPort
	for i := range maxDirect {
		places = append(places, netip.AddrPortFrom(netip.MustParseAddr("172.18.0.2"), uint16(i)))
	}
	f := filterFor(places, portRange{32768, 60999})
	vm, err := bpf.NewVM(f)
	must(t, err)
	const most = 4096 // BPF_MAXINSNS of <linux/bpf_common.h>
	if len(f) > most {
		t.Errorf("%d instructions, the kernel takes %d", len(f), most)
	}
	if n, err := vm.Run(frame(0, places[maxDirect-1], netip.MustParseAddrPort("172.18.0.1:40000"))); n != 0 || err != nil {
		t.Errorf("the last place's: %d bytes pass, %v", n, err)
	}
}
