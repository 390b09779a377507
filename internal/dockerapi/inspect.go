package dockerapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"den/internal/engine"
	"den/internal/sandbox"
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
		d.HostConfig = &container.HostConfig{LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{}}}
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
		Mounts:     mountPoints(c),
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
	showProtected(door.HostConfig)
	if v < 42 {
		out.HostConfig.KernelMemory, out.HostConfig.KernelMemoryTCP = new(int64), new(int64)
	}
	if v < 52 {
		out.Config.OnBuild, out.Config.MacAddress = &out.Config.Config.OnBuild, askedMAC(c)
	}
	out.NetworkSettings = networkOf(c, v)
	return out
}

// showProtected fills in which paths of proc and sys are hidden or may be read only, where that was left to den.
func showProtected(h *container.HostConfig) {
	masked, readOnly := []string{}, []string{}
	if !slices.Contains(h.SecurityOpt, "systempaths=unconfined") {
		masked, readOnly = sandbox.MaskedPaths(), sandbox.ReadonlyPaths()
	}
	if h.MaskedPaths == nil {
		h.MaskedPaths = masked
	}
	if h.ReadonlyPaths == nil {
		h.ReadonlyPaths = readOnly
	}
}

// askedMAC is the hardware address that was asked for in the network of the container's mode.
func askedMAC(c *engine.Container) string {
	mode := c.NetworkMode
	if mode == apinet.NetworkDefault {
		mode = apinet.NetworkBridge
	}
	for i := range c.Networks {
		if e := &c.Networks[i]; e.NetworkName == mode && len(e.Request.MAC) > 0 {
			return e.Request.MAC.String()
		}
	}
	return ""
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

// mountPoints are a container's mounts without those of HostConfig.Tmpfs, which docker does not count.
func mountPoints(c *engine.Container) []container.MountPoint {
	out := []container.MountPoint{}
	for _, m := range c.Mounts {
		if m.Kind == engine.MountTmpfs {
			if _, ok := doorOf(c).HostConfig.Tmpfs[m.Target]; ok {
				continue
			}
		}
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
