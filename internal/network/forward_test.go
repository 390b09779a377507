package network

import (
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// FuzzForward: whatever an outer server says, the container gets an answer to what it asked.
func FuzzForward(f *testing.F) {
	question := func() *dns.Msg { return new(dns.Msg).SetQuestion("example.", dns.TypeA) }
	full := new(dns.Msg).SetReply(question())
	for range 40 {
		full.Answer = append(full.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 200)}})
	}
	cut := new(dns.Msg).SetReply(question())
	cut.Truncated = true
	for _, m := range []*dns.Msg{new(dns.Msg).SetReply(question()), question(), full, cut, new(dns.Msg).SetRcode(question(), dns.RcodeRefused), {}} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1, 0xc0, 12}) // a name that is itself
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { server.Close() })
	var says atomic.Pointer[[]byte]
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			if n >= 2 {
				_, _ = server.WriteTo(append(append([]byte(nil), b[:2]...), *says.Load()...), from)
			}
		}
	}()
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	s := NewNameServer(loopback(), func() []netip.AddrPort { return []netip.AddrPort{at} })
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[min(2, len(b)):min(len(b), 60000)] // the server knows the question's number
		says.Store(&b)
		q := question()
		m := s.forward(netip.MustParseAddr("127.0.0.1"), q, false)
		if m == nil || m.Id != q.Id || !m.Response || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, "example.") {
			t.Fatalf("%v is no answer", m)
		}
		m.Truncate(dns.MinMsgSize)
		if wire, err := m.Pack(); err == nil && len(wire) > dns.MinMsgSize {
			t.Errorf("%d bytes, the client takes %d", len(wire), dns.MinMsgSize)
		}
	})
}
