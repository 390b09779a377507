package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"den/internal/network"
	"den/internal/sandbox"
)

// connect gives the container its places in networks, before it starts.
func (r *run) connect(ctx context.Context) error {
	c, ns := r.c, r.c.engine.Options.Networks
	if ns == nil || !c.more.connects() {
		return nil
	}
	rs, err := c.endpointRequests(ctx)
	if err != nil {
		return err
	}
	if r.space, c.endpoints, err = ns.Attach(ctx, c.record.ID, rs); err != nil {
		return fmt.Errorf("failed to set up container networking: %w", err)
	}
	for _, ep := range c.endpoints {
		c.engine.connectEvent(ctx, ep.Network, c.record.ID, "connect")
	}
	return nil
}

func (e *Engine) connectEvent(ctx context.Context, id, container, action string) {
	name := id
	if n, err := e.Options.Networks.Network(ctx, id); err == nil {
		id, name = n.ID, n.Name
	}
	e.networkEvent(id, name, action, container)
}

// endpointRequests are the places that the container asks for, completed.
func (c *container) endpointRequests(ctx context.Context) ([]network.EndpointRequest, error) {
	ns := c.engine.Options.Networks
	rs := slices.Clone(c.more.Endpoints)
	links, err := c.links(ctx)
	if err != nil {
		return nil, err
	}
	ports := c.published()
	dns := c.servers()
	for i := range rs {
		r := &rs[i]
		r.Container, r.Name, r.Ports, r.DNS = c.record.ID, c.record.Name, ports, dns
		if n, err := ns.Network(ctx, r.Network); err == nil {
			if !n.Default { // names of the default network are links'
				r.Aliases = append(slices.Clone(r.Aliases), c.record.ID[:12])
				if h := c.request.Hostname; h != "" {
					r.Aliases = append(r.Aliases, h)
				}
			}
			r.Network = n.ID
		}
		if r.Links, err = c.engine.linkIDs(r.Links, links); err != nil {
			return nil, err
		}
		if i == 0 && c.more.MAC != "" && len(r.MAC) == 0 {
			if r.MAC, err = net.ParseMAC(c.more.MAC); err != nil {
				return nil, invalid("invalid MAC address: %s", c.more.MAC)
			}
		}
	}
	return rs, nil
}

// servers are the name servers that were asked for. They were checked.
func (c *container) servers() (out []netip.Addr) {
	for _, d := range c.request.DNS {
		if a, err := netip.ParseAddr(d); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// published are the ports to publish: with PublishAll every exposed one that is not yet.
func (c *container) published() []network.Port {
	ports := slices.Clone(c.more.Ports)
	if !c.more.PublishAll {
		return ports
	}
	for _, spec := range c.exposed() {
		number, protocol, _ := strings.Cut(spec, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			continue // an image may expose anything
		}
		has := slices.ContainsFunc(ports, func(p network.Port) bool {
			return p.Container == uint16(n) && p.Protocol == protocol
		})
		if !has {
			ports = append(ports, network.Port{Protocol: protocol, Container: uint16(n)})
		}
	}
	return ports
}

// exposed are the image's and the request's ports, each as NUMBER/PROTOCOL.
func (c *container) exposed() []string {
	specs := slices.Collect(maps.Keys(c.config.Config.ExposedPorts))
	var out []string
	for _, s := range append(specs, c.more.Exposed...) {
		if !strings.Contains(s, "/") {
			s += "/tcp"
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// links maps the names of --link to containers.
func (c *container) links(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	for _, link := range c.more.Links {
		name, alias, ok := strings.Cut(link, ":")
		name = strings.TrimPrefix(name, "/")
		if !ok {
			alias = name
		}
		alias = alias[strings.LastIndexByte(alias, '/')+1:]
		l, err := c.engine.mine(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("could not get container for %s: %w", name, err)
		}
		if _, err := l.running(); err != nil {
			return nil, conflict("Cannot link to a non running container: /%s AS /%s/%s", name, c.record.Name, alias)
		}
		out[alias], out[l.snapshot().Name], out[l.id[:12]] = l.id, l.id, l.id
	}
	return out, nil
}

// linkIDs are the links of one endpoint, by ids, beside those of the container.
func (e *Engine) linkIDs(own, all map[string]string) (map[string]string, error) {
	out := maps.Clone(all)
	for alias, name := range own {
		id, err := e.find(name)
		if err != nil {
			return nil, err
		}
		out[alias] = id
	}
	return out, nil
}

// shareNamespaces points the specification at the namespaces that are not the
// container's own.
func (c *container) shareNamespaces(ctx context.Context, q *sandbox.Request, r *run) error {
	if r.space != nil {
		q.Interfaces = r.space.Interfaces()
		if ns := r.space.Namespace(); ns != nil {
			q.Hold, q.OwnNetwork = append(q.Hold, ns), true
			joinNamespace(q.Spec, specs.NetworkNamespace, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()))
		}
	}
	for _, s := range []struct {
		what, mode string
		of         *sandbox.Sandbox
	}{
		{"network", c.more.NetworkMode, &q.NetworkOf}, {"IPC", c.more.IpcMode, &q.IPCOf}, {"PID", c.more.PidMode, &q.PIDsOf},
	} {
		other, ok := strings.CutPrefix(s.mode, "container:")
		if !ok {
			continue
		}
		l, err := c.engine.mine(ctx, other)
		if err != nil {
			return err
		}
		run, err := l.running()
		if err != nil {
			return conflict("cannot join %s of a non running container: %s", s.what, l.id)
		}
		*s.of = run.sb
	}
	return nil
}

func joinNamespace(s *specs.Spec, kind specs.LinuxNamespaceType, path string) {
	s.Linux.Namespaces = append(dropNamespace(s.Linux.Namespaces, kind), specs.LinuxNamespace{Type: kind, Path: path})
}

func dropNamespace(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) []specs.LinuxNamespace {
	return slices.DeleteFunc(list, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// plug tells the space how to put devices into a sandbox with a network stack of its own.
func (r *run) plug() {
	if p, ok := r.sb.(sandbox.Plugger); ok && r.space != nil {
		r.space.SetPlug(p.Plug, p.Unplug)
	}
}

// release gives back what the run had besides its sandbox, which has ended.
func (r *run) release(ctx context.Context) error {
	var errs []error
	if r.watch != nil {
		// That the store is full was told to the program.
		_ = r.watch.Stop()
	}
	if r.control != nil {
		r.control.Close()
	}
	if r.space != nil {
		errs = append(errs, r.space.Close())
	}
	if ns := r.c.engine.Options.Networks; ns != nil && r.c.more.connects() {
		endpoints, err := ns.Of(ctx, r.c.record.ID)
		errs = append(errs, err, ns.Release(ctx, r.c.record.ID))
		for _, ep := range endpoints {
			r.c.engine.connectEvent(ctx, ep.Network, r.c.record.ID, "disconnect")
		}
	}
	return errors.Join(errs...)
}

// networkHosts is /etc/hosts of a container that has places in networks.
func (c *container) networkHosts(ctx context.Context) ([]byte, error) {
	var extra []network.Host
	for _, h := range c.request.AddHosts {
		name, addr, err := splitHost(h)
		if err != nil {
			return nil, err
		}
		ips := make([]netip.Addr, 1)
		if addr == network.HostGateway {
			if ips, err = c.engine.Options.Networks.HostGateways(ctx, c.endpoints); err == nil && len(ips) == 0 {
				err = invalid("unable to derive the IP value for host-gateway")
			}
		} else {
			ips[0], err = netip.ParseAddr(strings.Trim(addr, "[]"))
		}
		if err != nil {
			return nil, err
		}
		for _, ip := range ips {
			extra = append(extra, network.Host{Addr: ip, Names: []string{name}})
		}
	}
	text, err := c.engine.Options.Networks.Hosts(ctx, c.endpoints, c.hostname(), c.more.Domainname, extra)
	return []byte(text), err
}

func (c *container) networkResolv(ctx context.Context, es []network.Endpoint) ([]byte, error) {
	text, err := c.engine.Options.Networks.Resolv(ctx, es, network.Resolv{
		Servers: c.servers(), Search: c.request.DNSSearch, Options: c.request.DNSOptions,
	})
	return []byte(text), err
}

// namesOf is the directory with the name files of the container whose network this one has, or empty if that is its own.
func (c *container) namesOf(ctx context.Context) (string, error) {
	var id string
	mode := c.more.NetworkMode
	for seen := map[string]bool{c.record.ID: true}; ; { // who has joined another has no such files, either
		other, ok := strings.CutPrefix(mode, "container:")
		if !ok {
			break
		}
		l, err := c.engine.mine(ctx, other)
		if err != nil {
			return "", err
		}
		if seen[l.id] {
			return "", conflict("cannot join own network")
		}
		l.mu.Lock()
		id, mode, seen[l.id] = l.id, l.request.NetworkMode, true
		l.mu.Unlock()
	}
	if id == "" {
		return "", nil
	}
	dir, err := c.engine.Store.OpenContainer(id)
	if err != nil {
		return "", missing(id, err)
	}
	return filepath.Clean(dir.Path()), dir.Close()
}
