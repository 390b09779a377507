package network

import (
	"net/netip"
	"os"
	"sync"
	"time"
)

// An outerServers follows a resolv.conf: DHCP clients and VPNs change it.
type outerServers struct {
	path    string
	mu      sync.Mutex
	looked  time.Time
	read    time.Time // the file's time when it was read
	servers []netip.AddrPort
}

// OuterServers returns the servers of the resolv.conf at path, as they are when asked for.
func OuterServers(path string) func() []netip.AddrPort {
	o := &outerServers{path: path}
	return o.now
}

func (o *outerServers) now() []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.looked) < time.Second {
		return o.servers
	}
	o.looked = time.Now()
	st, err := os.Stat(o.path)
	if err != nil || st.ModTime().Equal(o.read) && o.servers != nil {
		return o.servers // while it is being replaced, what it said counts
	}
	c, err := ReadResolv(o.path)
	if err != nil {
		return o.servers
	}
	o.read, o.servers = st.ModTime(), []netip.AddrPort{}
	for _, a := range c.Servers {
		o.servers = append(o.servers, netip.AddrPortFrom(a, 53))
	}
	return o.servers
}
