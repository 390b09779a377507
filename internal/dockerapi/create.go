package dockerapi

import (
	"encoding/json"
	"maps"
	"net/http"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"den/internal/engine"
	"den/internal/sys"
)

// create answers POST /containers/create.
func (s *Server) create(w http.ResponseWriter, c *call) error {
	var body createBody
	if err := c.decode(&body); err != nil {
		return err
	}
	req, warnings, err := s.createRequest(&body, c.version)
	if err != nil {
		return err
	}
	if err := checkName(c.query.Get("name")); err != nil {
		return err
	}
	req.Name = strings.TrimPrefix(c.query.Get("name"), "/")
	if p := c.query.Get("platform"); p != "" {
		platform, err := platforms.Parse(p)
		if err != nil {
			return invalid("invalid platform: %v", err)
		}
		req.Platform = &platform
	}
	made, err := s.Engine.Create(c.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.CreateResponse{
		ID: made.ID, Warnings: append(append([]string{}, warnings...), made.Warnings...),
	})
}

// createRequest is what the body asks the engine for, and sentences about what it
// asks for and does not get.
func (s *Server) createRequest(b *createBody, v version) (*engine.CreateRequest, []string, error) {
	if err := b.normalise(v); err != nil {
		return nil, nil, err
	}
	s.fillLog(&b.HostConfig.LogConfig)
	warnings, err := b.check()
	if err != nil {
		return nil, nil, err
	}
	door, err := json.Marshal(doorState{Config: b.Config, HostConfig: b.HostConfig})
	if err != nil {
		return nil, nil, err
	}
	r := &engine.CreateRequest{Door: door}
	b.config(r)
	b.host(r)
	for _, step := range []func(*engine.CreateRequest) error{
		func(r *engine.CreateRequest) error { return s.mounts(b, r) },
		b.ports,
		b.endpoints,
		b.logs,
		b.health,
	} {
		if err := step(r); err != nil {
			return nil, nil, err
		}
	}
	return r, warnings, nil
}

// config translates what does not depend on the machine.
func (b *createBody) config(r *engine.CreateRequest) {
	c := b.Config
	r.Image, r.Args, r.Entrypoint = c.Image, c.Cmd, c.Entrypoint
	r.Env, r.Labels, r.WorkingDir, r.User = c.Env, c.Labels, c.WorkingDir, c.User
	r.Hostname, r.Domainname = c.Hostname, c.Domainname
	r.TTY, r.OpenStdin, r.StdinOnce = c.Tty, c.OpenStdin, c.StdinOnce
	r.AttachStdin, r.AttachStdout, r.AttachStderr = c.AttachStdin, c.AttachStdout, c.AttachStderr
	r.StopSignal, r.StopSeconds = c.StopSignal, c.StopTimeout
	for port := range c.ExposedPorts {
		r.Exposed = append(r.Exposed, port.String())
	}
	slices.Sort(r.Exposed)
}

// host translates what does, but for mounts and networks.
func (b *createBody) host(r *engine.CreateRequest) {
	h := b.HostConfig
	r.Remove, r.Init = h.AutoRemove, h.Init != nil && *h.Init
	r.Privileged = false // check refused it, or said that it does without
	r.ReadOnly, r.ShmBytes = h.ReadonlyRootfs, h.ShmSize
	r.CapAdd, r.CapDrop, r.GroupAdd = h.CapAdd, h.CapDrop, h.GroupAdd
	r.Sysctls, r.Annotations = h.Sysctls, h.Annotations
	r.AddHosts = extraHosts(h.ExtraHosts)
	for _, a := range h.DNS {
		if a.IsValid() {
			r.DNS = append(r.DNS, a.String())
		}
	}
	r.DNSOptions, r.DNSSearch = h.DNSOptions, h.DNSSearch
	r.PidMode, r.UTSMode = string(h.PidMode), string(h.UTSMode)
	if r.IpcMode = string(h.IpcMode); h.IpcMode.IsPrivate() {
		r.IpcMode = ""
	}
	r.Security = h.SecurityOpt
	if h.MaskedPaths != nil && len(h.MaskedPaths) == 0 && h.ReadonlyPaths != nil && len(h.ReadonlyPaths) == 0 {
		// That is how the CLI sends it.
		r.Security = append(slices.Clone(r.Security), "systempaths=unconfined")
	}
	r.Masked, r.ReadOnlyPaths = h.MaskedPaths, h.ReadonlyPaths
	r.CgroupParent, r.HostCgroups = h.CgroupParent, h.CgroupnsMode.IsHost()
	if h.OomScoreAdj != 0 {
		r.OOMScoreAdjust = &h.OomScoreAdj
	}
	r.Restart = engine.RestartPolicy{Name: string(h.RestartPolicy.Name), Max: h.RestartPolicy.MaximumRetryCount}
	if r.Restart.Name == string(container.RestartPolicyDisabled) {
		r.Restart.Name = ""
	}
	r.Limits = limits(&h.Resources)
	for _, u := range h.Ulimits {
		if u != nil {
			r.Ulimits = append(r.Ulimits, engine.Ulimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
		}
	}
	for _, d := range h.Devices {
		r.Devices = append(r.Devices, engine.Device{Source: d.PathOnHost, Target: d.PathInContainer, Access: d.CgroupPermissions})
	}
	if size := h.ConsoleSize; size[0] <= 1<<16-1 && size[1] <= 1<<16-1 {
		r.Console = engine.Size{Rows: uint16(size[0]), Cols: uint16(size[1])}
	}
}

// extraHosts are NAME:IP; docker takes NAME=IP, too.
func extraHosts(hosts []string) []string {
	var out []string
	for _, h := range hosts {
		if name, ip, ok := strings.Cut(h, "="); ok && !strings.Contains(name, ":") {
			h = name + ":" + strings.Trim(ip, "[]")
		}
		out = append(out, h)
	}
	return out
}

// limits are those that den knows how to keep.
func limits(r *container.Resources) engine.Limits {
	l := engine.Limits{
		MemoryBytes: r.Memory, MemorySwapBytes: r.MemorySwap, CPUs: float64(r.NanoCPUs) / 1e9,
		CPUShares: uint64(max(0, r.CPUShares)), CpusetCPUs: r.CpusetCpus, CpusetMems: r.CpusetMems,
		MemoryReservationBytes: r.MemoryReservation, BlkioWeight: r.BlkioWeight,
	}
	if r.CPUQuota > 0 && l.CPUs == 0 {
		period := r.CPUPeriod
		if period == 0 {
			period = 100_000 // the kernel's, in µs
		}
		// More processors than there are is no limit, and no mistake as of --cpus.
		l.CPUs = min(float64(r.CPUQuota)/float64(period), float64(runtime.NumCPU()))
	}
	if r.PidsLimit != nil && *r.PidsLimit > 0 {
		l.Pids = *r.PidsLimit
	}
	return l
}

// logs translates --log-driver and --log-opt.
func (b *createBody) logs(r *engine.CreateRequest) (err error) {
	r.LogConfig, err = logConfig(b.HostConfig.LogConfig)
	return err
}

func (b *createBody) health(r *engine.CreateRequest) error {
	h := b.Healthcheck
	if h == nil {
		return nil
	}
	if len(h.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL"}, h.Test[0]) {
		return invalid("Unknown healthcheck type %q (expected 'CMD') in container", h.Test[0])
	}
	for name, d := range map[string]int64{
		"Interval": int64(h.Interval), "Timeout": int64(h.Timeout),
		"StartPeriod": int64(h.StartPeriod), "StartInterval": int64(h.StartInterval),
	} {
		if d != 0 && d < int64(container.MinimumDuration) {
			return invalid("%s in Healthcheck cannot be less than %s", name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	r.Health = &engine.HealthCheck{
		Test: h.Test, Interval: h.Interval, Timeout: h.Timeout,
		StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
	}
	return nil
}

// check refuses what den cannot do, each with a sentence, and warns of what it leaves out.
func (b *createBody) check() (warnings []string, err error) {
	c, h := b.Config, b.HostConfig
	for _, e := range c.Env {
		if name, _, _ := strings.Cut(e, "="); name == "" {
			return nil, invalid("invalid environment variable: %s", e)
		}
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return nil, invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return nil, invalid("%v", err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return nil, invalid("can't create 'AutoRemove' container with restart policy")
	}
	if err := refuse(h); err != nil {
		return nil, err
	}
	for name, caps := range map[string][]string{"CapAdd": h.CapAdd, "CapDrop": h.CapDrop} {
		if err := checkCaps(name, caps); err != nil {
			return nil, err
		}
	}
	if h.Privileged {
		if isImage(c, "moby/buildkit") {
			return nil, invalid("a BuildKit of the client's own needs privileges that den has not to give: set DOCKER_BUILDKIT=0, and COMPOSE_BAKE=false for compose; builds then run in den itself")
		}
		if !harmless(c) {
			return nil, &statusError{errdefs.ErrInvalidArgument, "privileged containers are refused: den has no more privileges to give than the container that it runs in. " +
				"Leave --privileged out: containers of den run, build and mount without it; what needs one capability asks for it by --cap-add. " +
				"Guests that need the machine itself (kind, k3d, docker:dind) do not work in den: run den in place of docker:dind"}
		}
		warnings = append(warnings, "--privileged is not in force: den gives this container what it needs without it")
	}
	warnings = append(warnings, leftOut(&h.Resources)...)
	return append(warnings, b.leftOutMore()...), nil
}

// leftOutMore names what else den, or any Linux, has no use for.
func (b *createBody) leftOutMore() (warnings []string) {
	h := b.HostConfig
	if h.Cgroup != "" {
		warnings = append(warnings, notSupported("the cgroup of another container"))
	}
	if h.CPUCount != 0 || h.CPUPercent != 0 || h.IOMaximumIOps != 0 || h.IOMaximumBandwidth != 0 {
		warnings = append(warnings, notSupported("limits of Windows"))
	}
	config := b.NetworkingConfig.EndpointsConfig
	for _, name := range slices.Sorted(maps.Keys(config)) {
		if e := config[name]; e != nil {
			for _, what := range leftOutOf(e) {
				warnings = append(warnings, notSupported(what+" of network "+name))
			}
		}
	}
	return warnings
}

// leftOutOf names what of an endpoint's settings has no effect.
func leftOutOf(e *network.EndpointSettings) (what []string) {
	if len(e.DriverOpts) > 0 {
		what = append(what, "driver options")
	}
	if e.GwPriority != 0 {
		what = append(what, "the gateway priority")
	}
	if e.IPAMConfig != nil && len(e.IPAMConfig.LinkLocalIPs) > 0 {
		what = append(what, "link-local addresses")
	}
	return what
}

func notSupported(what string) string { return "den does not support " + what + ". It is discarded." }

// checkCaps finds capabilities that there are not.
func checkCaps(field string, caps []string) error {
	for _, c := range caps {
		if strings.EqualFold(c, "ALL") {
			continue
		}
		if _, err := sys.ParseCaps([]string{c}); err != nil {
			name := strings.ToUpper(c)
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			return invalid("invalid %s: unknown capability: %q", field, name)
		}
	}
	return nil
}

// containerName is docker's rule; "den run" takes one letter, too.
var containerName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// checkName refuses a name of a container that docker does. An empty one is none.
func checkName(name string) error {
	if name != "" && !containerName.MatchString(name) {
		return invalid("Invalid container name (%.200s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

// harmless says that a container asks for privileges by habit: Testcontainers' reaper
// needs the socket only, binfmt's installer what is in /proc already.
func harmless(c *container.Config) bool {
	return isTrue(c.Labels["org.testcontainers.ryuk"]) || isImage(c, "testcontainers/ryuk", "tonistiigi/binfmt")
}

// isImage says that a container's image is one of those named, of whatever registry and tag.
func isImage(c *container.Config, names ...string) bool {
	repository, _, _ := strings.Cut(c.Image, "@")
	if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
		repository = repository[:i]
	}
	return slices.ContainsFunc(names, func(name string) bool {
		return repository == name || strings.HasSuffix(repository, "/"+name)
	})
}

func refuse(h *container.HostConfig) error {
	switch {
	case len(h.DeviceRequests) > 0:
		return invalid("could not select device driver %q with capabilities: %v: den hands no GPUs to containers", h.DeviceRequests[0].Driver, h.DeviceRequests[0].Capabilities)
	case !h.Isolation.IsDefault():
		return invalid("invalid isolation %q on linux", h.Isolation)
	case h.VolumeDriver != "" && h.VolumeDriver != volumeDriver:
		return noVolumeDriver(h.VolumeDriver)
	case len(h.StorageOpt) > 0:
		return invalid("--storage-opt: den's storage has no quotas: bound the volume that den's store is on")
	case h.Umask != nil:
		return invalid("HostConfig.Umask: den does not set one: let the program call umask")
	case !slices.Contains([]string{runtimeName, "runc", "io.containerd.runc.v2"}, h.Runtime):
		return invalid("unknown or invalid runtime name: %s", h.Runtime)
	case !h.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return invalid("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", h.UTSMode)
	case !h.UsernsMode.Valid():
		return invalid("invalid userns mode: %v", h.UsernsMode)
	case !h.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case !h.Cgroup.Valid():
		return invalid("invalid cgroup mode: %v", h.Cgroup)
	case slices.ContainsFunc(slices.Concat(h.MaskedPaths, h.ReadonlyPaths), func(p string) bool { return !path.IsAbs(p) }):
		return invalid("masked and read-only paths must be absolute")
	case len(h.CgroupParent) > 4096, strings.ContainsRune(h.CgroupParent, 0):
		return invalid("invalid cgroup parent")
	case h.NanoCPUs > 0 && (h.CPUPeriod > 0 || h.CPUQuota > 0):
		return invalid("conflicting options: Nano CPUs and CPU Period cannot both be set")
	case h.CPUPeriod != 0 && (h.CPUPeriod < 1000 || h.CPUPeriod > 1_000_000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case h.CPUQuota > 0 && h.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case h.MemoryReservation < 0:
		return invalid("limits must not be negative")
	case h.MemorySwappiness != nil && (*h.MemorySwappiness < 0 || *h.MemorySwappiness > 100):
		return invalid("Invalid value: %d, valid memory swappiness range is 0-100", *h.MemorySwappiness)
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case h.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case h.Memory < 0, h.NanoCPUs < 0, h.CPUQuota < 0 && h.CPUQuota != -1:
		return invalid("limits must not be negative")
	case h.MemorySwap < -1:
		return invalid("invalid memory-swap: %d", h.MemorySwap)
	}
	return nil
}

// leftOut names the limits that den does not know how to keep, in docker's words for
// a kernel that does not.
func leftOut(r *container.Resources) (warnings []string) {
	for name, asked := range map[string]bool{
		"block I/O throttling":     len(r.BlkioWeightDevice)+len(r.BlkioDeviceReadBps)+len(r.BlkioDeviceWriteBps)+len(r.BlkioDeviceReadIOps)+len(r.BlkioDeviceWriteIOps) > 0,
		"CPU real-time scheduling": r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0,
		"memory swappiness":        r.MemorySwappiness != nil,
		"OomKillDisable":           r.OomKillDisable != nil && *r.OomKillDisable,
		"device cgroup rules":      len(r.DeviceCgroupRules) > 0,
	} {
		if asked {
			warnings = append(warnings, notSupported(name))
		}
	}
	slices.Sort(warnings)
	return warnings
}
