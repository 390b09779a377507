package engine

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"den/internal/image"
	"den/internal/network"
	"den/internal/oci"
)

// A DescribeOption asks for what costs more than reading records.
type DescribeOption int

// WithSizes counts what a container's files take.
const WithSizes DescribeOption = iota

// Container describes a container.
func (e *Engine) Container(ctx context.Context, nameOrID string, options ...DescribeOption) (*Container, error) {
	if err := e.settled(ctx); err != nil {
		return nil, err
	}
	id, err := e.find(nameOrID)
	if err != nil {
		return nil, err
	}
	return e.describe(ctx, id, options)
}

// Containers describes all containers, newest first.
func (e *Engine) Containers(ctx context.Context, options ...DescribeOption) ([]*Container, error) {
	if err := e.settled(ctx); err != nil {
		return nil, err
	}
	ids, err := e.Store.Containers()
	if err != nil {
		return nil, err
	}
	var out []*Container
	for _, id := range ids {
		c, err := e.describe(ctx, id, options)
		switch {
		case errdefs.IsNotFound(err), errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			e.Log(err)
		default:
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b *Container) int { return b.Created.Compare(a.Created) })
	return out, nil
}

func (e *Engine) describe(ctx context.Context, id string, options []DescribeOption) (*Container, error) {
	l, err := e.life(id)
	if err != nil {
		return nil, err
	}
	var c *container
	var rec record
	if l != nil {
		l.mu.Lock()
		rec = l.record
		c = &container{engine: e, request: &l.request.RunRequest, more: l.request, image: l.image, config: l.config, record: rec}
		l.mu.Unlock()
	} else if c, err = e.foreign(id); err != nil {
		return nil, err
	} else {
		rec = c.record
	}
	out := c.describe(ctx, e.Store.ContainerPath(id))
	out.State = rec.state()
	if l == nil && rec.State == stateDead {
		out.State.Dead = true
	}
	out.ExecIDs = e.execs.of(id)
	if slices.Contains(options, WithSizes) {
		if out.WritableBytes, out.RootBytes, err = e.sizes(ctx, c, id); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// foreign is a container of den run, or of a den serve that this process is not.
func (e *Engine) foreign(id string) (*container, error) {
	s, err := e.summary(id)
	if err != nil {
		return nil, missing(id, err)
	}
	if s == nil {
		return nil, notFound("No such container: %s", id)
	}
	dir, err := e.Store.OpenContainer(id)
	if err != nil {
		return nil, missing(id, err)
	}
	defer dir.Close()
	c := &container{engine: e, config: &oci.Image{}, image: &image.Image{ConfigDigest: s.ConfigDigest}}
	c.more = &CreateRequest{RunRequest: RunRequest{Image: s.Image, Args: s.Command, Labels: s.Labels, Remove: s.Remove, TTY: s.TTY}, NetworkMode: "host"}
	c.more.Restart.Name, c.more.LogConfig.Driver = "no", "json-file"
	c.request = &c.more.RunRequest
	if r, err := readRecord(dir); err == nil {
		c.record = *r
	}
	c.record.ID, c.record.State, c.record.ExitCode = s.ID, state(s.Status), s.ExitCode
	return c, nil
}

// state is what inspect shows of where the container is.
func (r *record) state() State {
	s := State{
		Status: string(r.State), Running: r.alive() || r.State == stateRestarting,
		Paused: r.State == statePaused, Restarting: r.State == stateRestarting, Dead: r.State == stateDead,
		OOMKilled: r.OOMKilled, Pid: r.Pid, ExitCode: r.ExitCode, Error: r.Error,
		Started: r.Started, Finished: r.Finished, Health: r.Health,
	}
	if r.alive() {
		s.ExitCode = 0
	}
	return s
}

func (c *container) describe(ctx context.Context, dir string) *Container {
	r := &c.record
	out := &Container{
		ID: r.ID, Name: r.Name, Request: c.more, Image: r.Image, ConfigDigest: r.ConfigDigest,
		Config: c.effective(), Platform: c.image.Platform, Command: r.Command, Labels: r.Labels, Created: r.Created,
		RestartCount: r.RestartCount, NetworkMode: c.more.NetworkMode,
		HostnamePath: filepath.Join(dir, "hostname"), HostsPath: filepath.Join(dir, "hosts"), ResolvConfPath: filepath.Join(dir, "resolv.conf"),
	}
	if c.engine.Driver != nil {
		out.StorageDriver = c.engine.Driver.Name()
	}
	if c.more.LogConfig.Driver != "none" {
		out.LogPath = filepath.Join(dir, logDir)
	}
	if other, ok := strings.CutPrefix(out.NetworkMode, "container:"); ok {
		if id, err := c.engine.find(other); err == nil {
			out.NetworkMode = "container:" + id
		}
	}
	for _, m := range c.request.Mounts {
		out.Mounts = append(out.Mounts, c.engine.mountPoint(m))
	}
	slices.SortStableFunc(out.Mounts, func(a, b MountPoint) int { return strings.Compare(a.Target, b.Target) })
	out.Networks = c.places(ctx)
	return out
}

func (e *Engine) mountPoint(m Mount) MountPoint {
	p := MountPoint{Kind: m.Kind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Options: strings.Join(m.Options, ",")}
	if m.Kind == MountVolume {
		p.Name, p.Source = m.Source, e.volumePath(m.Source)
	}
	return p
}

// effective is the request's configuration on top of the image's.
func (c *container) effective() dockerspec.DockerOCIImageConfig {
	cfg, req := c.config.Config, c.request
	cfg.Env = overlaid(append(append([]string{}, c.config.Config.Env...), req.Env...))
	if !slices.ContainsFunc(cfg.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		cfg.Env = append(cfg.Env, defaultPath)
	}
	if req.Entrypoint != nil {
		cfg.Entrypoint, cfg.Cmd = trimEmpty(req.Entrypoint), req.Args
	} else if len(req.Args) > 0 {
		cfg.Cmd = req.Args
	}
	cfg.User, cfg.WorkingDir = first(req.User, cfg.User), first(req.WorkingDir, cfg.WorkingDir)
	cfg.StopSignal = first(req.StopSignal, cfg.StopSignal)
	cfg.Labels = c.record.Labels
	cfg.ExposedPorts = maps.Clone(cfg.ExposedPorts)
	for _, p := range c.exposed() {
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = map[string]struct{}{}
		}
		cfg.ExposedPorts[p] = struct{}{}
	}
	if h := c.wantedHealth(); len(h.Test) > 0 {
		cfg.Healthcheck = &dockerspec.HealthcheckConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	return cfg
}

// places are the container's endpoints: those that it has, and those that it will have.
func (c *container) places(ctx context.Context) []NetworkEndpoint {
	ns := c.engine.Options.Networks
	if ns == nil || !c.more.connects() {
		return nil
	}
	var have []network.Endpoint
	if c.record.alive() {
		var err error
		if have, err = ns.Of(ctx, c.record.ID); err != nil {
			c.engine.Log(err)
		}
	}
	var out []NetworkEndpoint
	for _, r := range c.more.Endpoints {
		ne := NetworkEndpoint{NetworkName: r.Network, Request: r}
		ne.Aliases = r.Aliases
		if n, err := ns.Network(ctx, r.Network); err == nil {
			ne.NetworkName, ne.Network = n.Name, n.ID
			i := slices.IndexFunc(have, func(ep network.Endpoint) bool { return ep.Network == n.ID })
			if i >= 0 {
				ne.Endpoint = have[i]
				ne.gateways(n)
			}
		}
		out = append(out, ne)
	}
	return out
}

// gateways names those of the network.
func (ne *NetworkEndpoint) gateways(n *network.Network) {
	if n.Internal {
		return
	}
	for _, g := range n.Gateways() {
		if g.Is4() {
			ne.Gateway4 = g.String()
		} else {
			ne.Gateway6 = g.String()
		}
	}
}

// sizes counts what the container wrote, and its whole root.
func (e *Engine) sizes(ctx context.Context, c *container, id string) (writable, root *int64, err error) {
	own, err := treeBytes(ctx, c.record.own(e.Store.ContainerPath(id)))
	if err != nil {
		return nil, nil, err
	}
	all := own
	for _, l := range c.image.Layers {
		all += l.SizeBytes
	}
	return &own, &all, nil
}
