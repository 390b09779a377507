package dockerapi

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"den/internal/engine"
	"den/internal/network"
)

// doorOf is what the door kept when it made the container. A container that den run
// made has nothing of it, and one whose record is damaged neither: both get docker's
// defaults.
func doorOf(c *engine.Container) *doorState {
	var d doorState
	if c.Request != nil && len(c.Request.Door) > 0 {
		_ = json.Unmarshal(c.Request.Door, &d)
	}
	if d.Config == nil {
		d.Config = &container.Config{Image: c.Image}
		if r := c.Request; r != nil {
			d.Config.Hostname, d.Config.Tty, d.Config.OpenStdin = r.Hostname, r.TTY, r.OpenStdin
			d.Config.StopTimeout = r.StopSeconds
		}
	}
	if d.HostConfig == nil {
		d.HostConfig = &container.HostConfig{}
		if r := c.Request; r != nil {
			d.HostConfig.AutoRemove, d.HostConfig.ReadonlyRootfs = r.Remove, r.ReadOnly
			d.HostConfig.Memory, d.HostConfig.MemorySwap = r.Limits.MemoryBytes, r.Limits.MemorySwapBytes
			d.HostConfig.NanoCPUs = int64(r.Limits.CPUs * 1e9)
		}
		normaliseHost(d.HostConfig, newest)
	}
	return &d
}

func (s *Server) inspect(w http.ResponseWriter, c *call) error {
	var options []engine.DescribeOption
	if c.flag("size") {
		options = append(options, engine.WithSizes)
	}
	found, err := s.Engine.Container(c.Context(), c.name, options...)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, describe(found, c.version))
}

// An inspection is container.InspectResponse with what older versions had.
type inspection struct {
	container.InspectResponse
	Config          *inspectedConfig
	HostConfig      *inspectedHost
	NetworkSettings *inspectedNetwork
	Mounts          []container.MountPoint
	// ExecIDs is null, not empty, when there are none.
	ExecIDs []string
}

// inspectedConfig is container.Config as it was before Cmd and Entrypoint got tags.
type inspectedConfig struct {
	*container.Config
	// MacAddress was dropped in 1.52.
	MacAddress string    `json:",omitempty"`
	OnBuild    *[]string `json:",omitempty"`
}

// inspectedHost has the fields of HostConfig that later versions dropped.
type inspectedHost struct {
	*container.HostConfig
	KernelMemory    *int64 `json:",omitempty"`
	KernelMemoryTCP *int64 `json:",omitempty"`
}

// inspectedNetwork has the fields of the default bridge that 1.52 dropped.
type inspectedNetwork struct {
	*container.NetworkSettings
	*legacyNetwork
}

type legacyNetwork struct {
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []struct{}
	SecondaryIPv6Addresses []struct{}
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
}

// describe is everything that inspect says of a container.
func describe(c *engine.Container, v version) *inspection {
	door := doorOf(c)
	out := &inspection{
		InspectResponse: container.InspectResponse{
			ID: c.ID, Created: stamp(c.Created), Name: "/" + c.Name,
			Image: string(c.ConfigDigest), Platform: c.Platform.OS,
			State: stateOf(&c.State), RestartCount: c.RestartCount, Driver: c.StorageDriver,
			LogPath: c.LogPath, HostnamePath: c.HostnamePath, HostsPath: c.HostsPath, ResolvConfPath: c.ResolvConfPath,
			GraphDriver: &storage.DriverData{Name: c.StorageDriver, Data: map[string]string{}},
			SizeRw:      c.WritableBytes, SizeRootFs: c.RootBytes,
		},
		Config:     &inspectedConfig{Config: configOf(c, door.Config)},
		HostConfig: &inspectedHost{HostConfig: door.HostConfig},
		Mounts:     mountPoints(c.Mounts),
		ExecIDs:    c.ExecIDs,
	}
	if len(c.Command) > 0 {
		out.Path = c.Command[0]
	}
	out.Args = append([]string{}, c.Command[min(1, len(c.Command)):]...)
	if out.Platform == "" {
		out.Platform = "linux"
	}
	if len(out.ExecIDs) == 0 {
		out.ExecIDs = nil
	}
	if c.NetworkMode != "" {
		door.HostConfig.NetworkMode = container.NetworkMode(c.NetworkMode)
	}
	if v < 42 {
		out.HostConfig.KernelMemory, out.HostConfig.KernelMemoryTCP = new(int64), new(int64)
	}
	if v < 52 {
		out.Config.OnBuild = &out.Config.Config.OnBuild
	}
	out.NetworkSettings = networkOf(c, v)
	return out
}

// stamp is a time in docker's form. Docker writes the zero time as what it is.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func stateOf(s *engine.State) *container.State {
	out := &container.State{
		Status: container.ContainerState(s.Status), Running: s.Running, Paused: s.Paused, Restarting: s.Restarting,
		OOMKilled: s.OOMKilled, Dead: s.Dead, Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error,
		StartedAt: stamp(s.Started), FinishedAt: stamp(s.Finished),
	}
	if s.Health == nil {
		return out
	}
	out.Health = &container.Health{
		Status: container.HealthStatus(s.Health.Status), FailingStreak: s.Health.FailingStreak,
		Log: []*container.HealthcheckResult{},
	}
	for _, r := range s.Health.Log {
		out.Health.Log = append(out.Health.Log, &container.HealthcheckResult{Start: r.Start, End: r.End, ExitCode: r.ExitCode, Output: r.Output})
	}
	return out
}

// configOf is what was asked for, on top of what the image says.
func configOf(c *engine.Container, asked *container.Config) *container.Config {
	out := *asked
	if out.Hostname == "" && !container.NetworkMode(c.NetworkMode).IsHost() {
		out.Hostname = c.ID[:min(12, len(c.ID))]
	}
	image := &c.Config
	out.Env, out.Cmd, out.Entrypoint = image.Env, image.Cmd, image.Entrypoint
	out.User, out.WorkingDir, out.Labels = image.User, image.WorkingDir, c.Labels
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.StopSignal, out.OnBuild, out.Shell = image.StopSignal, image.OnBuild, image.Shell
	if h := image.Healthcheck; h != nil {
		out.Healthcheck = &container.HealthConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod,
			StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	if len(image.Volumes) > 0 {
		out.Volumes = image.Volumes
	}
	ports := apinet.PortSet{}
	for p := range asked.ExposedPorts {
		ports[p] = struct{}{}
	}
	for p := range exposed(image.ExposedPorts) {
		ports[p] = struct{}{}
	}
	if out.ExposedPorts = ports; len(ports) == 0 {
		out.ExposedPorts = nil
	}
	return &out
}

// exposed reads an image's EXPOSE, ranges included. What is no port is left out.
func exposed(ports map[string]struct{}) apinet.PortSet {
	set := apinet.PortSet{}
	for p := range ports {
		r, err := apinet.ParsePortRange(p)
		if err != nil {
			continue
		}
		for port := range r.All() {
			set[port] = struct{}{}
		}
	}
	return set
}

func mountPoints(mounts []engine.MountPoint) []container.MountPoint {
	out := []container.MountPoint{}
	for _, m := range mounts {
		p := container.MountPoint{
			Type: mount.Type(m.Kind), Name: m.Name, Source: m.Source, Destination: m.Target,
			Mode: m.Options, RW: !m.ReadOnly,
		}
		switch m.Kind {
		case engine.MountVolume:
			p.Driver = volumeDriver
		case engine.MountBind:
			p.Propagation = mount.PropagationRPrivate
		}
		out = append(out, p)
	}
	return out
}

// networkOf is what inspect says of networks.
func networkOf(c *engine.Container, v version) *inspectedNetwork {
	out := &inspectedNetwork{NetworkSettings: &container.NetworkSettings{
		Ports:    portMap(c),
		Networks: endpointSettings(c, v),
	}}
	if c.State.Running {
		out.SandboxID = c.ID
		if c.State.Pid > 0 {
			out.SandboxKey = "/proc/" + strconv.Itoa(c.State.Pid) + "/ns/net"
		}
	}
	if v >= 52 {
		return out
	}
	out.legacyNetwork = &legacyNetwork{}
	for i := range c.Networks {
		if e := &c.Networks[i]; e.NetworkName == apinet.NetworkBridge {
			l := out.legacyNetwork
			l.EndpointID, l.MacAddress = e.ID, e.MAC
			l.IPAddress, l.IPPrefixLen = address(e.IPv4)
			l.GlobalIPv6Address, l.GlobalIPv6PrefixLen = address(e.IPv6)
			l.Gateway, l.IPv6Gateway = e.Gateway4, e.Gateway6
			if e.ID == "" {
				l.Gateway, l.IPv6Gateway = "", ""
			}
		}
	}
	return out
}

// address is a prefix's address and length; "" and 0 if it is none.
func address(p netip.Prefix) (string, int) {
	if !p.IsValid() {
		return "", 0
	}
	return p.Addr().String(), p.Bits()
}

// endpointSettings are a container's networks, as asked for and, while it runs, as they are.
func endpointSettings(c *engine.Container, v version) map[string]*apinet.EndpointSettings {
	out := map[string]*apinet.EndpointSettings{}
	for i := range c.Networks {
		e := &c.Networks[i]
		s := &apinet.EndpointSettings{NetworkID: e.Network, Aliases: e.Request.Aliases, DNSNames: dnsNames(c, e)}
		if e.Request.IPv4.IsValid() || e.Request.IPv6.IsValid() {
			s.IPAMConfig = &apinet.EndpointIPAMConfig{IPv4Address: e.Request.IPv4, IPv6Address: e.Request.IPv6}
		}
		for alias, target := range e.Request.Links {
			s.Links = append(s.Links, target+":"+alias)
		}
		if v < 45 && e.NetworkName != apinet.NetworkBridge {
			s.Aliases = append(append([]string{}, s.Aliases...), c.ID[:min(12, len(c.ID))])
		}
		if e.ID != "" {
			s.EndpointID = e.ID
			s.IPAddress, s.IPPrefixLen = e.IPv4.Addr(), max(0, e.IPv4.Bits())
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = e.IPv6.Addr(), max(0, e.IPv6.Bits())
			s.Gateway, s.IPv6Gateway = parseAddr(e.Gateway4), parseAddr(e.Gateway6)
			_ = s.MacAddress.UnmarshalText([]byte(e.MAC)) // den's own words
		}
		out[e.NetworkName] = s
	}
	return out
}

func parseAddr(s string) netip.Addr {
	a, _ := netip.ParseAddr(s) // invalid is none
	return a
}

// dnsNames are what resolves to the container in a network that is not the default one.
func dnsNames(c *engine.Container, e *engine.NetworkEndpoint) []string {
	if e.NetworkName == apinet.NetworkBridge {
		return nil
	}
	names := []string{c.Name}
	for _, n := range append(append([]string{}, e.Request.Aliases...), c.ID[:min(12, len(c.ID))]) {
		if n != "" && !containsFold(names, n) {
			names = append(names, n)
		}
	}
	return names
}

func containsFold(list []string, s string) bool {
	for _, l := range list {
		if strings.EqualFold(l, s) {
			return true
		}
	}
	return false
}

// portMap are the ports of a running container: those that are exposed and, where
// they are published, where.
func portMap(c *engine.Container) apinet.PortMap {
	out := apinet.PortMap{}
	if !c.State.Running || container.NetworkMode(c.NetworkMode).IsHost() || container.NetworkMode(c.NetworkMode).IsNone() {
		return out
	}
	for p := range configOf(c, doorOf(c).Config).ExposedPorts {
		out[p] = nil
	}
	for i := range c.Networks {
		for _, p := range c.Networks[i].Ports {
			port, ok := apinet.PortFrom(p.Container, apinet.IPProtocol(p.Protocol))
			if !ok {
				continue
			}
			for _, ip := range hostIPs(p) {
				b := apinet.PortBinding{HostIP: ip, HostPort: strconv.Itoa(int(p.Host))}
				if !hasBinding(out[port], b) {
					out[port] = append(out[port], b)
				}
			}
		}
	}
	return out
}

func hasBinding(list []apinet.PortBinding, b apinet.PortBinding) bool {
	for _, l := range list {
		if l == b {
			return true
		}
	}
	return false
}

// hostIPs are the addresses that a port is published on: docker names both families'
// unspecified ones.
func hostIPs(p network.Port) []netip.Addr {
	if p.HostIP.IsValid() {
		return []netip.Addr{p.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}
