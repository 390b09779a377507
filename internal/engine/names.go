package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"den/internal/oci"
	"den/internal/sandbox"
)

// nameFiles writes the container's hostname, hosts and resolv.conf.
func (c *container) nameFiles(ctx context.Context) ([]oci.Mount, error) {
	if dir, err := c.namesOf(ctx); dir != "" || err != nil {
		return nameMounts(dir), err
	}
	hostsOf, resolvOf := c.hosts, c.resolvConf
	if c.more.connects() && c.engine.Options.Networks != nil {
		hostsOf = func() ([]byte, error) { return c.networkHosts(ctx) }
		resolvOf = func() ([]byte, error) { return c.networkResolv(ctx, c.endpoints) }
	}
	hosts, err := hostsOf()
	if err != nil {
		return nil, err
	}
	resolv, err := resolvOf()
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{"hostname", []byte(c.hostname() + "\n")}, {"hosts", hosts}, {"resolv.conf", resolv},
	} {
		file := filepath.Join(c.dir.Path(), f.name)
		if err := os.WriteFile(file, f.text, 0o644); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.record.ID, err)
		}
		if err := os.Chmod(file, 0o644); err != nil { // whatever the umask
			return nil, fmt.Errorf("container %s: %w", c.record.ID, err)
		}
	}
	return nameMounts(c.dir.Path()), nil
}

// nameMounts show the files that nameFiles wrote in dir.
func nameMounts(dir string) (out []oci.Mount) {
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		out = append(out, oci.Mount{Type: "bind", Source: filepath.Join(dir, name), Target: "/etc/" + name, Options: []string{"bind", "rw"}})
	}
	return out
}

// hosts is /etc/hosts of the container: that of the surroundings where it shares
// their network, loopback alone where it has none.
func (c *container) hosts() ([]byte, error) {
	var b bytes.Buffer
	if c.network() == sandbox.NetworkHost {
		outer, err := readOuter("/etc/hosts")
		if err != nil {
			return nil, err
		}
		b.Write(outer)
	}
	if b.Len() == 0 {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	for _, h := range c.request.AddHosts {
		name, ip, err := parseHost(h)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	fmt.Fprintf(&b, "127.0.1.1\t%s\n", c.hostname())
	return b.Bytes(), nil
}

// splitHost reads NAME:ADDRESS or NAME=ADDRESS; ADDRESS may be in brackets, or a word.
func splitHost(h string) (name, addr string, err error) {
	name, addr, ok := strings.Cut(h, "=")
	if !ok {
		name, addr, ok = strings.Cut(h, ":")
	}
	if !ok || name == "" || strings.ContainsAny(name, " \t\n") {
		return "", "", invalid("invalid IP address in add-host: %q; want NAME:ADDRESS", h)
	}
	return name, addr, nil
}

// parseHost is splitHost with the address parsed.
func parseHost(h string) (name string, ip netip.Addr, err error) {
	name, addr, err := splitHost(h)
	if err != nil {
		return "", ip, err
	}
	if addr == "host-gateway" {
		// The network is shared, so the host is this machine itself.
		addr = "127.0.0.1"
	}
	if ip, err = netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")); err != nil {
		return "", ip, invalid("invalid IP address in add-host: %q; want NAME:ADDRESS", h)
	}
	return name, ip, nil
}

// resolvConf is the surroundings' resolver configuration, with what was asked
// for in the place of theirs.
func (c *container) resolvConf() ([]byte, error) {
	outer, err := readOuter("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	req := c.request
	if len(req.DNS)+len(req.DNSSearch)+len(req.DNSOptions) == 0 {
		return outer, nil
	}
	var b bytes.Buffer
	for line := range bytes.Lines(outer) {
		key, _, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		switch {
		case key == "nameserver" && len(req.DNS) > 0:
		case (key == "search" || key == "domain") && len(req.DNSSearch) > 0:
		case key == "options" && len(req.DNSOptions) > 0:
		default:
			b.Write(line)
		}
	}
	for _, d := range req.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	if search := strings.Join(req.DNSSearch, " "); search != "" && search != "." {
		fmt.Fprintf(&b, "search %s\n", search)
	}
	if len(req.DNSOptions) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(req.DNSOptions, " "))
	}
	return b.Bytes(), nil
}

// maxNameFile bounds what is taken over from the surroundings' /etc.
const maxNameFile = 4 << 20

// readOuter reads a file of the surroundings; a missing one is empty. It ends
// in a line's end.
func readOuter(name string) ([]byte, error) {
	b, err := readBounded(name, maxNameFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(b) > 0 && !bytes.HasSuffix(b, []byte("\n")) {
		b = append(b, '\n')
	}
	return b, nil
}

// network is the sandbox's name for the request's.
func (c *container) network() string {
	if c.request.Network == sandbox.NetworkNone {
		return sandbox.NetworkNone
	}
	return sandbox.NetworkHost
}
