package engine

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/oci"
	"den/internal/sandbox"
)

// hosts is /etc/hosts of the container: that of the surroundings where it shares
// their network, loopback alone where it has none.
func (c *container) hosts() ([]byte, error) {
	var b bytes.Buffer
	if c.network() == sandbox.NetworkHost {
		outer, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		b.Write(outer)
		if b.Len() > 0 && !bytes.HasSuffix(b.Bytes(), []byte("\n")) {
			b.WriteByte('\n')
		}
	}
	if b.Len() == 0 {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	for _, h := range c.request.AddHosts {
		name, addr, ok := strings.Cut(h, ":")
		if !ok {
			name, addr, ok = strings.Cut(h, "=")
		}
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if addr == "host-gateway" {
			// The network is shared, so the host is this machine itself.
			ip, err = netip.MustParseAddr("127.0.0.1"), nil
		}
		if !ok || err != nil {
			return nil, fmt.Errorf("host %q: want NAME:ADDRESS: %w", h, errdefs.ErrInvalidArgument)
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	fmt.Fprintf(&b, "127.0.1.1\t%s\n", c.hostname())
	return b.Bytes(), nil
}

// resolvConf is the surroundings' resolver configuration, or the one asked for.
func (c *container) resolvConf() ([]byte, error) {
	if len(c.request.DNS) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return b, err
	}
	var b bytes.Buffer
	for _, d := range c.request.DNS {
		ip, err := netip.ParseAddr(d)
		if err != nil {
			return nil, fmt.Errorf("dns %q: want an address: %w", d, errdefs.ErrInvalidArgument)
		}
		fmt.Fprintf(&b, "nameserver %s\n", ip)
	}
	return b.Bytes(), nil
}

func (c *container) network() string { return first(c.request.Network, sandbox.NetworkHost) }

// sortByDepth puts a mount before those that lie below it and keeps the order
// of others.
func sortByDepth(mounts []oci.Mount) {
	slices.SortStableFunc(mounts, func(a, b oci.Mount) int {
		return cmp.Compare(strings.Count(a.Target, "/"), strings.Count(b.Target, "/"))
	})
}
