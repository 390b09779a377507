package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is an outer DNS server; it returns its address and how often it was asked.
func upstream(t *testing.T, answer func(w dns.ResponseWriter, q *dns.Msg)) (netip.AddrPort, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		answer(w, q)
	})
	var c net.PacketConn
	var l net.Listener
	for range 100 { // a port that is free for both
		var err error
		if c, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		l, err = net.Listen("tcp4", c.LocalAddr().String())
		if err == nil {
			break
		}
		_ = c.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	for _, s := range []*dns.Server{{PacketConn: c, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), &asked
}

// outside answers A questions with 192.0.2.1, by TCP those about "long." with 60 more.
func outside(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	rr := func(last byte) dns.RR {
		return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 9}, A: net.IPv4(192, 0, 2, last)}
	}
	if name == "long." && w.LocalAddr().Network() == "udp" {
		m.Truncated = true
	} else if name == "long." {
		for i := range byte(60) {
			m.Answer = append(m.Answer, rr(i+1))
		}
	} else {
		m.Answer = []dns.RR{rr(1)}
	}
	_ = w.WriteMsg(m)
}

// serveNames serves z to loopback clients and returns the server's address.
func serveNames(t *testing.T, n *Network, z *Zone, outer func() []netip.AddrPort) (*NameServer, string) {
	t.Helper()
	s := NewNameServer(n, outer)
	s.SetZone(z)
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", c.LocalAddr().String())
	if err != nil {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve([]net.PacketConn{c}, []net.Listener{l}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if l.Addr().String() != c.LocalAddr().String() {
		t.Skip("no port of the loopback device is free for both UDP and TCP")
	}
	return s, c.LocalAddr().String()
}

func loopback() *Network {
	return &Network{Subnets: []Subnet{{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Gateway: netip.MustParseAddr("127.0.0.9")}}}
}

func exchange(t *testing.T, network, server, name string, typ uint16) (rcode int, answers []string) {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 20 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, typ), server)
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	for _, rr := range m.Answer {
		answers = append(answers, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(answers)
	return m.Rcode, answers
}

func TestNameServerAnswersItsZoneAndAsksOthers(t *testing.T) {
	outer, _ := upstream(t, outside)
	me := netip.MustParseAddr("127.0.0.1")
	v4, v6 := netip.MustParseAddr("127.0.0.7"), netip.MustParseAddr("fd00::7")
	z := &Zone{
		Names: []Name{
			{Name: "db", Addresses: []netip.Addr{v4, v6}},
			{Name: "pool", Addresses: []netip.Addr{v4}}, {Name: "pool", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.8")}},
			{Name: "mine", For: []netip.Addr{me}, Addresses: []netip.Addr{v4}},
			{Name: "theirs", For: []netip.Addr{v4}, Addresses: []netip.Addr{v4}},
		},
		Reverse: map[netip.Addr]string{v4: "db.net", v6: "db.net"},
	}
	_, server := serveNames(t, loopback(), z, func() []netip.AddrPort { return []netip.AddrPort{outer} })
	reverse6, err := dns.ReverseAddr(v6.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name string
			typ  uint16
			code int
			want []string
		}{
			{"db.", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.7"}},
			{"Db.", dns.TypeAAAA, dns.RcodeSuccess, []string{"fd00::7"}},
			{"db.", dns.TypeMX, dns.RcodeSuccess, nil},
			{"pool.", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.7", "127.0.0.8"}},
			{"pool.", dns.TypeAAAA, dns.RcodeSuccess, nil},
			{"mine.", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.7"}},
			{"theirs.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.1"}},
			{"example.com.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.1"}},
			{"7.0.0.127.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, []string{"db.net."}},
			{"6.0.0.127.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, nil},
			{reverse6, dns.TypePTR, dns.RcodeSuccess, []string{"db.net."}},
		} {
			if code, got := exchange(t, network, server, c.name, c.typ); code != c.code || !slices.Equal(got, c.want) {
				t.Errorf("%s %s %s: %s %v, want %s %v", network, c.name, dns.TypeToString[c.typ], dns.RcodeToString[code], got, dns.RcodeToString[c.code], c.want)
			}
		}
	}
	if _, got := exchange(t, "tcp", server, "long.", dns.TypeA); len(got) != 60 {
		t.Errorf("a long answer by TCP has %d addresses, want 60", len(got))
	}
	m, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(new(dns.Msg).SetQuestion("long.", dns.TypeA), server)
	m.Compress = true // as it came
	if err != nil || !m.Truncated || m.Len() > dns.MinMsgSize {
		t.Errorf("a long answer by UDP: truncated %t, %d bytes, %v", m.Truncated, m.Len(), err)
	}
	big := new(dns.Msg).SetQuestion("long.", dns.TypeA)
	big.SetEdns0(4096, false)
	m, _, err = (&dns.Client{Timeout: 20 * time.Second, UDPSize: 4096}).Exchange(big, server)
	if err != nil || m.Truncated || len(m.Answer) != 60 {
		t.Errorf("a long answer by UDP with room for it: truncated %t, %d, %v", m.Truncated, len(m.Answer), err)
	}
}

func TestNameServerTriesTheNextServer(t *testing.T) {
	good, _ := upstream(t, outside)
	refuses, refused := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused)) })
	stray, strays := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Question[0].Name = "other."
		_ = w.WriteMsg(m)
	})
	_, server := serveNames(t, loopback(), &Zone{}, func() []netip.AddrPort { return []netip.AddrPort{refuses, stray, good} })
	if _, got := exchange(t, "udp", server, "example.", dns.TypeA); !slices.Equal(got, []string{"192.0.2.1"}) || refused.Load() != 1 || strays.Load() != 1 {
		t.Errorf("got %v, asked %d and %d", got, refused.Load(), strays.Load())
	}
}

func TestNameServerHasBounds(t *testing.T) {
	outer, asked := upstream(t, outside)
	self := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), 53)
	_, server := serveNames(t, loopback(), &Zone{}, func() []netip.AddrPort { return []netip.AddrPort{self} })
	if code, _ := exchange(t, "udp", server, "example.", dns.TypeA); code != dns.RcodeServerFailure {
		t.Errorf("a server that is its own outer one: %s", dns.RcodeToString[code])
	}
	_, server = serveNames(t, loopback(), &Zone{}, nil)
	if code, _ := exchange(t, "udp", server, "example.", dns.TypeA); code != dns.RcodeServerFailure {
		t.Errorf("an internal network: %s", dns.RcodeToString[code])
	}
	elsewhere := &Network{Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1")}}}
	_, server = serveNames(t, elsewhere, &Zone{Names: []Name{{Name: "db", Addresses: []netip.Addr{outer.Addr()}}}}, func() []netip.AddrPort { return []netip.AddrPort{outer} })
	if code, _ := exchange(t, "udp", server, "db.", dns.TypeA); code != dns.RcodeRefused {
		t.Errorf("a client from elsewhere: %s", dns.RcodeToString[code])
	}
	full, server := serveNames(t, loopback(), &Zone{}, func() []netip.AddrPort { return []netip.AddrPort{outer} })
	for full.asking.Take(netip.MustParseAddr("127.0.0.1")) { // as if that many were under way
	}
	if code, _ := exchange(t, "udp", server, "example.", dns.TypeA); code != dns.RcodeServerFailure || asked.Load() != 0 {
		t.Errorf("too many questions: %s, asked %d", dns.RcodeToString[code], asked.Load())
	}
	if m := full.forward(netip.MustParseAddr("127.0.0.2"), new(dns.Msg).SetQuestion("example.", dns.TypeA), false); m.Rcode != dns.RcodeSuccess {
		t.Errorf("a client beside one with too many questions: %s", dns.RcodeToString[m.Rcode])
	}
}

func TestClientsHaveServersOfTheirOwn(t *testing.T) {
	outer, asked := upstream(t, outside)
	own, ownAsked := upstream(t, outside)
	s, server := serveNames(t, loopback(), &Zone{}, func() []netip.AddrPort { return []netip.AddrPort{outer} })
	x := *s.zone.Load()
	x.forward = map[netip.Addr][]netip.AddrPort{netip.MustParseAddr("127.0.0.1"): {own}} // on a port that is not 53
	s.zone.Store(&x)
	exchange(t, "udp", server, "example.", dns.TypeA)
	if asked.Load() != 0 || ownAsked.Load() != 1 {
		t.Errorf("asked: outer %d, own %d; want 0, 1", asked.Load(), ownAsked.Load())
	}
}

func TestOuterServersFollowTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	o := &outerServers{path: path}
	if got := o.now(); len(got) != 0 {
		t.Errorf("without a file: %v", got)
	}
	for i, server := range []string{"10.0.0.1", "10.0.0.2"} {
		if err := os.WriteFile(path, []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(int64(i+1), 0)); err != nil {
			t.Fatal(err)
		}
		o.looked = time.Time{}
		if got := o.now(); len(got) != 1 || got[0].String() != server+":53" {
			t.Errorf("servers %v, want %s", got, server)
		}
	}
}

// Containers may send anything.
func FuzzAnswer(f *testing.F) {
	for _, q := range []*dns.Msg{
		new(dns.Msg).SetQuestion("db.", dns.TypeA), new(dns.Msg).SetQuestion("7.0.0.127.in-addr.arpa.", dns.TypePTR),
		new(dns.Msg).SetQuestion(strings.Repeat("7.", 32)+"ip6.arpa.", dns.TypePTR), new(dns.Msg).SetNotify("db."), {},
		new(dns.Msg).SetEdns0(512, true),
	} {
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := NewNameServer(loopback(), nil)
	s.SetZone(&Zone{
		Names:   []Name{{Name: "db", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.7"), netip.IPv6Loopback()}}},
		Reverse: map[netip.Addr]string{netip.MustParseAddr("127.0.0.7"): "db.net"},
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		m := s.Answer(netip.MustParseAddr("127.0.0.1"), q)
		if m == nil {
			if len(q.Question) != 1 {
				t.Errorf("%v would be forwarded", q)
			}
			return
		}
		if m.Id != q.Id || !m.Response {
			t.Errorf("%v is no answer to %v", m, q)
		}
		if _, err := m.Pack(); err != nil {
			t.Errorf("%v: %v", m, err)
		}
	})
}
