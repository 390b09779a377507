package dockerapi

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	apinet "github.com/moby/moby/api/types/network"

	"den/internal/engine"
	"den/internal/network"
)

func (s *Server) networkRoutes() []route {
	return []route{
		{"GET", "/networks", s.listNetworks, 0},
		{"POST", "/networks/create", s.createNetwork, 0},
		{"POST", "/networks/prune", s.pruneNetworks, 25},
		{"GET", "/networks/{name}", s.inspectNetwork, 0},
		{"POST", "/networks/{name}/connect", s.connectNetwork, 0},
		{"POST", "/networks/{name}/disconnect", s.disconnectNetwork, 0},
		{"DELETE", "/networks/{name}", s.removeNetwork, 0},
	}
}

// A listedNetwork is apinet.Inspect as every version has it.
type listedNetwork struct {
	apinet.Network
	// EnableIPv4 came in 1.48.
	EnableIPv4 *bool `json:",omitempty"`
	Containers map[string]apinet.EndpointResource
	Status     *apinet.Status `json:",omitempty"`
}

// networkText is what lists say of a network.
func networkText(n *network.Network, v version) *listedNetwork {
	out := &listedNetwork{Network: apinet.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: "bridge", EnableIPv6: n.IPv6,
		IPAM:     apinet.IPAM{Driver: "default", Config: []apinet.IPAMConfig{}},
		Internal: n.Internal, Attachable: n.Attachable, Options: n.Options, Labels: n.Labels,
	}, Containers: map[string]apinet.EndpointResource{}}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	v4 := false
	for _, sub := range n.Subnets {
		v4 = v4 || sub.Prefix.Addr().Is4()
		out.IPAM.Config = append(out.IPAM.Config, apinet.IPAMConfig{
			Subnet: sub.Prefix, Gateway: sub.Gateway, IPRange: sub.Range, AuxAddress: sub.Auxiliary,
		})
	}
	if v >= 48 {
		out.EnableIPv4 = &v4
	}
	return out
}

// builtin are the networks that are no networks: docker lists them, too.
func builtin(v version) []*listedNetwork {
	var out []*listedNetwork
	for _, n := range []struct{ name, driver string }{{apinet.NetworkHost, "host"}, {apinet.NetworkNone, "null"}} {
		id := sha256.Sum256([]byte("den network " + n.name))
		t := networkText(&network.Network{Name: n.name, ID: hex.EncodeToString(id[:])}, v)
		t.Driver, t.IPAM.Config = n.driver, []apinet.IPAMConfig{}
		out = append(out, t)
	}
	return out
}

// findBuiltin is the network that is none by name or the beginning of its id; nil if
// it is another.
func findBuiltin(nameOrID string, v version) *listedNetwork {
	for _, n := range builtin(v) {
		if n.Name == nameOrID || len(nameOrID) >= 12 && strings.HasPrefix(n.ID, nameOrID) {
			return n
		}
	}
	return nil
}

func (s *Server) listNetworks(w http.ResponseWriter, c *call) error {
	f, err := c.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	for _, kind := range f["type"] {
		if kind != "custom" && kind != "builtin" {
			return invalid("invalid filter: 'type'='%s'", kind)
		}
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return err
	}
	all, err := s.Engine.Networks(c.Context())
	if err != nil {
		return err
	}
	out := []*listedNetwork{}
	keep := func(n *listedNetwork, custom bool) error {
		kind := "builtin"
		if custom {
			kind = "custom"
		}
		if !(f.exact("driver", n.Driver) && f.fuzzy("id", n.ID) && f.labels("label", n.Labels) &&
			f.matches("name", n.Name) && f.exact("scope", n.Scope) && f.exact("type", kind)) {
			return nil
		}
		if f.has("dangling") {
			used := true // the others are never dangling
			if custom {
				endpoints, err := s.Engine.NetworkEndpoints(c.Context(), n.ID)
				if err != nil && !errdefs.IsNotFound(err) {
					return err
				}
				used = len(endpoints) > 0
			}
			if dangling == used {
				return nil
			}
		}
		out = append(out, n)
		return nil
	}
	for _, n := range all {
		if err := keep(networkText(n, c.version), !n.Default); err != nil {
			return err
		}
	}
	for _, n := range builtin(c.version) {
		if err := keep(n, false); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) inspectNetwork(w http.ResponseWriter, c *call) error {
	if scope := c.query.Get("scope"); scope != "" && scope != "local" {
		return notFound("network %s not found", c.name)
	}
	if n := findBuiltin(c.name, c.version); n != nil {
		return writeJSON(w, http.StatusOK, n)
	}
	n, err := s.Engine.Network(c.Context(), c.name)
	if err != nil {
		return err
	}
	out := networkText(n, c.version)
	endpoints, err := s.Engine.NetworkEndpoints(c.Context(), n.ID)
	if err != nil {
		return err
	}
	for i := range endpoints {
		e := &endpoints[i]
		r := apinet.EndpointResource{Name: e.Name, EndpointID: e.ID, IPv4Address: e.IPv4, IPv6Address: e.IPv6}
		_ = r.MacAddress.UnmarshalText([]byte(e.MAC)) // den's own words
		out.Containers[e.Container] = r
	}
	if c.version >= 52 {
		out.Status = networkStatus(n, endpoints)
	}
	return writeJSON(w, http.StatusOK, out)
}

// networkStatus counts addresses. The network's own, the gateway and version 4's broadcast address are in use. What is
// given to those who ask for none comes out of the range.
func networkStatus(n *network.Network, endpoints []network.Endpoint) *apinet.Status {
	subnets := apinet.SubnetStatuses{}
	for _, sub := range n.Subnets {
		used := []netip.Addr{sub.Prefix.Masked().Addr(), sub.Gateway}
		if sub.Prefix.Addr().Is4() {
			used = append(used, lastAddr(sub.Prefix))
		}
		used = slices.AppendSeq(used, maps.Values(sub.Auxiliary))
		for i := range endpoints {
			used = append(used, endpoints[i].IPv4.Addr(), endpoints[i].IPv6.Addr())
		}
		within := func(p netip.Prefix) (n uint64) {
			for _, a := range used {
				if p.Contains(a) {
					n++
				}
			}
			return n
		}
		pool := sub.Prefix
		if sub.Range.IsValid() {
			pool = sub.Range
		}
		size := ^uint64(0)
		if bits := pool.Addr().BitLen() - pool.Bits(); bits < 64 {
			size = 1 << bits
		}
		subnets[sub.Prefix] = apinet.SubnetStatus{IPsInUse: within(sub.Prefix), DynamicIPsAvailable: size - min(size, within(pool))}
	}
	return &apinet.Status{IPAM: apinet.IPAMStatus{Subnets: subnets}}
}

// lastAddr is the last address of a network of version 4.
func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a)
}

func (s *Server) createNetwork(w http.ResponseWriter, c *call) error {
	var body apinet.CreateRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	r, err := networkRequest(&body)
	if err != nil {
		return err
	}
	n, err := s.Engine.CreateNetwork(c.Context(), *r)
	if errdefs.IsAlreadyExists(err) {
		return conflict("network with name %s already exists", body.Name)
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apinet.CreateResponse{ID: n.ID})
}

func networkRequest(body *apinet.CreateRequest) (*network.CreateRequest, error) {
	switch {
	case strings.TrimSpace(body.Name) == "":
		return nil, invalid("invalid network name: name is empty")
	case slices.Contains([]string{apinet.NetworkHost, apinet.NetworkNone, apinet.NetworkBridge, apinet.NetworkDefault}, body.Name),
		strings.HasPrefix(body.Name, "container:"):
		return nil, forbidden("operation is not permitted on predefined %s network", body.Name)
	case body.ConfigOnly || body.ConfigFrom != nil && body.ConfigFrom.Network != "":
		return nil, invalid("network create: den has no networks that are configuration only")
	case body.Driver == "overlay" || body.Ingress || body.Scope == "swarm":
		return nil, unavailable("%s", notManager)
	case body.Driver == "host" || body.Driver == "null":
		return nil, forbidden("only one instance of %q network is allowed", body.Driver)
	case body.Driver != "" && body.Driver != "bridge" && body.Driver != apinet.NetworkDefault:
		return nil, notFound("could not find plugin %s in v1 plugin registry: plugin not found: den has bridge networks only", body.Driver)
	case body.EnableIPv4 != nil && !*body.EnableIPv4 && (body.EnableIPv6 == nil || !*body.EnableIPv6):
		return nil, invalid("IPv4 or IPv6 must be enabled")
	}
	r := &network.CreateRequest{
		Name: body.Name, Driver: "bridge", Internal: body.Internal, Attachable: body.Attachable,
		Labels: body.Labels, Options: body.Options,
		IPv6: body.EnableIPv6 != nil && *body.EnableIPv6, NoIPv4: body.EnableIPv4 != nil && !*body.EnableIPv4,
	}
	if body.IPAM == nil {
		return r, nil
	}
	if d := body.IPAM.Driver; d != "" && d != "default" {
		return nil, notFound("ipam driver %q not found: den gives addresses itself", d)
	}
	for _, sub := range body.IPAM.Config {
		if !sub.Subnet.IsValid() && (sub.Gateway.IsValid() || sub.IPRange.IsValid() || len(sub.AuxAddress) > 0) {
			return nil, invalid("invalid network config:\ninvalid subnet : a gateway, a range or an address needs the subnet that it is in")
		}
		if !sub.Subnet.IsValid() {
			continue
		}
		if p := sub.Subnet; p != p.Masked() {
			return nil, invalid("invalid network config:\ninvalid subnet %s: it should be %s", p, p.Masked())
		}
		if p := sub.IPRange; p != p.Masked() {
			return nil, invalid("invalid network config:\ninvalid ip-range %s: it should be %s", p, p.Masked())
		}
		r.Subnets = append(r.Subnets, network.Subnet{
			Prefix: sub.Subnet, Gateway: sub.Gateway, Range: sub.IPRange, Auxiliary: sub.AuxAddress,
		})
	}
	return r, nil
}

func (s *Server) removeNetwork(w http.ResponseWriter, c *call) error {
	if n := findBuiltin(c.name, c.version); n != nil {
		return forbidden("%s is a pre-defined network and cannot be removed", n.Name)
	}
	err := s.Engine.RemoveNetwork(c.Context(), c.name)
	if errdefs.IsFailedPrecondition(err) || errdefs.IsConflict(err) {
		return forbidden("%v", err) // docker's status for a network that is in use
	}
	return noContent(w, err)
}

func (s *Server) connectNetwork(_ http.ResponseWriter, c *call) error {
	var body apinet.ConnectRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if findBuiltin(c.name, c.version) != nil {
		return forbidden("container cannot be connected to network %s: it is chosen when a container is created", c.name)
	}
	r, err := endpointRequest(c.name, body.EndpointConfig)
	if err != nil {
		return err
	}
	if err := connectable(body.EndpointConfig, c.version); err != nil {
		return err
	}
	return s.Engine.ConnectNetwork(c.Context(), body.Container, r)
}

// endpointOptions are the driver options of an endpoint that docker's networks know (daemon/libnetwork/netlabel).
// Others have no effect there either.
var endpointOptions = []string{"com.docker.network.endpoint.ifname", "com.docker.network.endpoint.sysctls"}

// connectable refuses what den leaves out of an endpoint: the answer to a connection has no
// place for a warning, as that to a creation has.
func connectable(e *apinet.EndpointSettings, v version) error {
	if e == nil {
		return nil
	}
	asked := *e
	if v < 48 {
		asked.GwPriority = 0 // as docker has it
	}
	asked.DriverOpts = nil
	what := leftOutOf(&asked)
	for _, name := range endpointOptions {
		if _, ok := e.DriverOpts[name]; ok {
			what = append(what, "the driver option "+name)
		}
	}
	if len(what) == 0 {
		return nil
	}
	return invalid("den does not support %s of an endpoint: leave it out", strings.Join(what, " and "))
}

func (s *Server) disconnectNetwork(_ http.ResponseWriter, c *call) error {
	var body apinet.DisconnectRequest
	if err := c.decode(&body); err != nil {
		return err
	}
	if n := findBuiltin(c.name, c.version); n != nil {
		return forbidden("container cannot be disconnected from %s network", n.Name)
	}
	return s.Engine.DisconnectNetwork(c.Context(), body.Container, c.name, engine.DisconnectOptions{Force: body.Force})
}
