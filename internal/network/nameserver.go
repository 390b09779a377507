package network

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"den/internal/network/share"
)

// The bounds of a name server, whose clients share what it has (see share).
const (
	nameTTL       = 60 // seconds
	maxForwards   = 256
	serverTimeout = 3 * time.Second
	tcpIdle       = 10 * time.Second
	maxTCPQueries = 128 // of one connection
	maxTCPClients = 256
)

// A NameServer answers the DNS questions of one network's containers: names of its
// zone itself, all others by asking the outer servers. It answers only clients of
// its subnets, and never asks itself.
type NameServer struct {
	subnets []netip.Prefix
	own     []netip.Addr
	outer   func() []netip.AddrPort
	zone    atomic.Pointer[index]
	asking  *share.Slots[netip.Addr] // by client

	mu      sync.Mutex
	servers []*dns.Server // nil once closed
	closed  bool
	work    sync.WaitGroup
}

// index is a Zone as questions want it.
type index struct {
	names   map[string][]Name
	reverse map[netip.Addr]string
	forward map[netip.Addr][]netip.AddrPort
}

// NewNameServer returns a server for n's containers that knows no names yet. outer
// are the servers for what it does not know, asked for with each question; nil
// means that there are none: an internal network.
func NewNameServer(n *Network, outer func() []netip.AddrPort) *NameServer {
	s := &NameServer{outer: outer, own: n.Gateways(), asking: share.New[netip.Addr](maxForwards)}
	for _, sub := range n.Subnets {
		s.subnets = append(s.subnets, sub.Prefix)
	}
	s.SetZone(&Zone{})
	return s
}

// SetZone replaces what the server knows.
func (s *NameServer) SetZone(z *Zone) {
	x := &index{names: map[string][]Name{}, reverse: z.Reverse, forward: map[netip.Addr][]netip.AddrPort{}}
	for _, n := range z.Names {
		key := strings.ToLower(strings.TrimSuffix(n.Name, "."))
		x.names[key] = append(x.names[key], n)
	}
	for client, servers := range z.Forward {
		for _, a := range servers {
			x.forward[client] = append(x.forward[client], netip.AddrPortFrom(a, 53))
		}
	}
	s.zone.Store(x)
}

// Serve answers on sockets until Close, which closes them.
func (s *NameServer) Serve(packets []net.PacketConn, streams []net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	for _, c := range packets {
		s.serve(&dns.Server{PacketConn: c, Handler: dns.HandlerFunc(s.handle), UDPSize: dns.MaxMsgSize})
	}
	for _, l := range streams {
		s.serve(&dns.Server{
			Listener: &limited{Listener: l, slots: share.New[netip.Addr](maxTCPClients)}, Handler: dns.HandlerFunc(s.handle),
			ReadTimeout: tcpIdle, WriteTimeout: tcpIdle, MaxTCPQueries: maxTCPQueries,
			IdleTimeout: func() time.Duration { return tcpIdle },
		})
	}
	return nil
}

func (s *NameServer) serve(d *dns.Server) {
	started := make(chan struct{})
	d.NotifyStartedFunc = func() { close(started) }
	ended := make(chan struct{})
	s.work.Go(func() {
		defer close(ended)
		_ = d.ActivateAndServe() // ends when its socket is closed
	})
	select { // Shutdown of a server that has not started does nothing
	case <-started:
	case <-ended:
	}
	s.servers = append(s.servers, d)
}

// Close ends the server and waits for its answers.
func (s *NameServer) Close() error {
	s.mu.Lock()
	servers := s.servers
	s.servers, s.closed = nil, true
	s.mu.Unlock()
	for _, d := range servers {
		ctx, cancel := context.WithTimeout(context.Background(), serverTimeout)
		_ = d.ShutdownContext(ctx) // an error says that questions are under way
		cancel()
	}
	s.work.Wait()
	return nil
}

// limited bounds the connections that are open at a time.
type limited struct {
	net.Listener
	slots *share.Slots[netip.Addr] // by client
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := addrOf(c.RemoteAddr())
		if l.slots.Take(client) {
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.slots.Give(client) })}, nil
		}
		_ = c.Close()
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// handle answers one question.
func (s *NameServer) handle(w dns.ResponseWriter, q *dns.Msg) {
	client := addrOf(w.RemoteAddr())
	stream := w.LocalAddr().Network() == "tcp"
	m := s.Answer(client, q)
	if m == nil {
		m = s.forward(client, q, stream)
	}
	if !stream {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m) // the client asks again
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// Answer is what the server answers by itself, nil if others have to be asked.
func (s *NameServer) Answer(client netip.Addr, q *dns.Msg) *dns.Msg {
	if !slices.ContainsFunc(s.subnets, func(p netip.Prefix) bool { return p.Contains(client) }) {
		return reply(q, dns.RcodeRefused)
	}
	if q.Response || q.Opcode != dns.OpcodeQuery {
		return reply(q, dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 {
		return reply(q, dns.RcodeFormatError)
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY {
		return nil
	}
	z := s.zone.Load()
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	if question.Qtype == dns.TypePTR {
		if a, ok := reversed(name); ok {
			return s.pointer(z, q, a)
		}
	}
	as, known := z.lookup(client, name)
	if !known {
		return nil
	}
	m := reply(q, dns.RcodeSuccess)
	rand.Shuffle(len(as), func(i, j int) { as[i], as[j] = as[j], as[i] })
	for _, a := range as {
		h := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: nameTTL}
		switch {
		case a.Is4() && (question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY):
			h.Rrtype = dns.TypeA
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		case a.Is6() && (question.Qtype == dns.TypeAAAA || question.Qtype == dns.TypeANY):
			h.Rrtype = dns.TypeAAAA
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return m // without an answer, it says that the name has none of that type
}

// lookup returns the addresses of name that the client sees, each once.
func (x *index) lookup(client netip.Addr, name string) (as []netip.Addr, known bool) {
	for _, n := range x.names[name] {
		if len(n.For) > 0 && !slices.Contains(n.For, client) {
			continue
		}
		known = true
		for _, a := range n.Addresses {
			if !slices.Contains(as, a) {
				as = append(as, a)
			}
		}
	}
	return as, known
}

func (s *NameServer) pointer(x *index, q *dns.Msg, a netip.Addr) *dns.Msg {
	if name, ok := x.reverse[a]; ok {
		m := reply(q, dns.RcodeSuccess)
		m.Answer = []dns.RR{&dns.PTR{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: nameTTL},
			Ptr: dns.Fqdn(name),
		}}
		return m
	}
	if slices.ContainsFunc(s.subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return reply(q, dns.RcodeNameError) // nobody outside knows better
	}
	return nil
}

// reversed reads a name of in-addr.arpa or ip6.arpa.
func reversed(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		b.WriteByte(rest[i])
		if i%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
		if i > 0 && rest[i-1] != '.' {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}

func reply(q *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	m.RecursionAvailable = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(dns.DefaultMsgSize, o.Do())
	}
	return m
}

// forward asks the servers that are responsible for the client, one after the
// other, until one has an answer.
func (s *NameServer) forward(client netip.Addr, q *dns.Msg, stream bool) *dns.Msg {
	if s.outer == nil {
		return reply(q, dns.RcodeServerFailure)
	}
	if !s.asking.Take(client) {
		return reply(q, dns.RcodeServerFailure)
	}
	defer s.asking.Give(client)
	servers := s.zone.Load().forward[client]
	if len(servers) == 0 {
		servers = s.outer()
	}
	answer := reply(q, dns.RcodeServerFailure)
	for range 2 { // a datagram may get lost
		for _, server := range servers {
			if slices.Contains(s.own, server.Addr()) {
				continue
			}
			m, err := ask(server, q, stream)
			if err != nil {
				continue
			}
			switch m.Rcode {
			case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
				answer = m // unless another does better
			default:
				return m
			}
		}
		if answer.Rcode != dns.RcodeServerFailure {
			break
		}
	}
	answer.Id = q.Id
	return answer
}

// errStrayAnswer is about an answer to another question.
var errStrayAnswer = errors.New("answer to another question")

// ask puts q to one server, by TCP if the client did or the answer was cut off.
func ask(server netip.AddrPort, q *dns.Msg, stream bool) (*dns.Msg, error) {
	out := q.Copy()
	out.Id = dns.Id()
	var cut *dns.Msg
	for {
		c := dns.Client{Net: "udp", Timeout: serverTimeout, UDPSize: dns.DefaultMsgSize}
		if stream {
			c.Net = "tcp"
		}
		m, _, err := c.Exchange(out, server.String())
		if err != nil && cut != nil {
			return cut, nil // of a server that does not speak TCP: better than nothing
		}
		if err != nil {
			return nil, err
		}
		if !m.Response || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
			return nil, errStrayAnswer
		}
		m.Id, m.Compress = q.Id, true
		if !m.Truncated || stream {
			return m, nil
		}
		stream, cut = true, m
	}
}
