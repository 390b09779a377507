package dockerapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"

	"den/internal/engine"
)

// listFilters are those of GET /containers/json.
var listFilters = [...]string{
	"ancestor", "annotation", "before", "expose", "exited", "health", "id", "isolation", "is-task",
	"label", "label!", "name", "network", "publish", "since", "status", "volume",
}

func (s *Server) list(w http.ResponseWriter, c *call) error {
	f, err := c.filters(listFilters[:]...)
	if err != nil {
		return err
	}
	limit, err := c.number("limit", 0)
	if err != nil {
		return err
	}
	var options []engine.DescribeOption
	if c.flag("size") {
		options = append(options, engine.WithSizes)
	}
	all, err := s.Engine.Containers(c.Context(), options...)
	if err != nil {
		return err
	}
	keep, err := s.listed(c.Context(), f, all)
	if err != nil {
		return err
	}
	running := !c.flag("all") && limit <= 0 && !f.has("status") && !f.has("exited")
	out := []*summary{}
	for _, one := range all {
		if running && !one.State.Running || !keep(one) {
			continue
		}
		out = append(out, summarise(one, c.version, time.Now()))
		if limit > 0 && len(out) == limit {
			break
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// listed checks the filters and returns what they say of one container. all are the
// containers, newest first.
func (s *Server) listed(ctx context.Context, f filters, all []*engine.Container) (func(*engine.Container) bool, error) {
	for _, status := range f["status"] {
		if container.ValidateContainerState(container.ContainerState(status)) != nil {
			return nil, invalid("invalid filter 'status=%s'", status)
		}
	}
	for _, health := range f["health"] {
		if container.ValidateHealthStatus(container.HealthStatus(health)) != nil {
			return nil, invalid("invalid filter 'health=%s'", health)
		}
	}
	for _, code := range f["exited"] {
		if _, err := strconv.Atoi(code); err != nil {
			return nil, invalid("invalid filter 'exited=%s'", code)
		}
	}
	task, err := f.boolean("is-task", false)
	if err != nil {
		return nil, err
	}
	published, err := portFilter(f, "publish")
	if err != nil {
		return nil, err
	}
	open, err := portFilter(f, "expose")
	if err != nil {
		return nil, err
	}
	between, err := s.between(ctx, f)
	if err != nil {
		return nil, err
	}
	ancestors, err := s.ancestors(ctx, f)
	if err != nil {
		return nil, err
	}
	return func(c *engine.Container) bool {
		return !task && between(c) && ancestors(c) && matchesState(f, c) && matchesName(f, c) &&
			f.labels("label", c.Labels) && (!f.has("label!") || !f.labels("label!", c.Labels)) && matchesAnnotations(f, c) &&
			matchesVolumes(f, c) && matchesNetworks(f, c) && published(publishedPorts(c)) && open(exposedPorts(c)) &&
			f.exact("isolation", "default")
	}, nil
}

// between keeps those created before one container and since another.
func (s *Server) between(ctx context.Context, f filters) (func(*engine.Container) bool, error) {
	var before, since *engine.Container
	for key, to := range map[string]**engine.Container{"before": &before, "since": &since} {
		if !f.has(key) {
			continue
		}
		c, err := s.Engine.Container(ctx, f[key][0])
		if err != nil {
			return nil, err
		}
		*to = c
	}
	return func(c *engine.Container) bool {
		return (before == nil || c.ID != before.ID && c.Created.Before(before.Created)) &&
			(since == nil || c.ID != since.ID && c.Created.After(since.Created))
	}, nil
}

// ancestors keeps the containers of images, by name, id or the beginning of an id.
func (s *Server) ancestors(ctx context.Context, f filters) (func(*engine.Container) bool, error) {
	if !f.has("ancestor") {
		return func(*engine.Container) bool { return true }, nil
	}
	var digests []string
	for _, name := range f["ancestor"] {
		if s.ImageDigest == nil {
			continue
		}
		// An image that is not there has no containers, but for those that remember its name.
		if digest, err := s.ImageDigest(ctx, name); err == nil {
			digests = append(digests, digest)
		}
	}
	return func(c *engine.Container) bool {
		config := string(c.ConfigDigest)
		return slices.Contains(digests, config) || slices.ContainsFunc(f["ancestor"], func(name string) bool {
			hex := strings.TrimPrefix(config, "sha256:")
			return c.Image == name || c.Image == name+":latest" || len(name) >= 4 && strings.HasPrefix(hex, strings.TrimPrefix(name, "sha256:"))
		})
	}, nil
}

func matchesState(f filters, c *engine.Container) bool {
	health := string(container.NoHealthcheck)
	if c.State.Health != nil {
		health = c.State.Health.Status
	}
	// A container that never ran or runs has not exited with 0.
	exited := !f.has("exited") ||
		!c.State.Running && !c.State.Started.IsZero() && slices.ContainsFunc(f["exited"], func(code string) bool {
			n, err := strconv.Atoi(code)
			return err == nil && n == c.State.ExitCode
		})
	return f.exact("status", c.State.Status) && f.exact("health", health) && exited
}

func matchesName(f filters, c *engine.Container) bool {
	// A name matches with docker's slash before it, too.
	return (f.matches("name", c.Name) || f.matches("name", "/"+c.Name)) && f.fuzzy("id", c.ID)
}

func matchesAnnotations(f filters, c *engine.Container) bool {
	if !f.has("annotation") {
		return true
	}
	return c.Request != nil && f.labels("annotation", c.Request.Annotations)
}

func matchesVolumes(f filters, c *engine.Container) bool {
	return !f.has("volume") || slices.ContainsFunc(c.Mounts, func(m engine.MountPoint) bool {
		return f.exact("volume", m.Target) || m.Kind == engine.MountVolume && f.exact("volume", m.Name) || m.Kind == engine.MountBind && f.exact("volume", m.Source)
	})
}

func matchesNetworks(f filters, c *engine.Container) bool {
	if !f.has("network") || f.exact("network", c.NetworkMode) {
		return true
	}
	return slices.ContainsFunc(c.Networks, func(e engine.NetworkEndpoint) bool {
		return f.exact("network", e.NetworkName) || e.Network != "" && f.fuzzy("network", e.Network)
	})
}

// portFilter reads publish and expose: PORT[-PORT][/PROTOCOL].
func portFilter(f filters, key string) (func([]apinet.Port) bool, error) {
	wanted := apinet.PortSet{}
	for _, v := range f[key] {
		r, err := apinet.ParsePortRange(v)
		if err != nil {
			return nil, invalid("invalid filter '%s=%s': %v", key, v, err)
		}
		for p := range r.All() {
			wanted[p] = struct{}{}
		}
	}
	return func(ports []apinet.Port) bool {
		return !f.has(key) || slices.ContainsFunc(ports, func(p apinet.Port) bool {
			_, ok := wanted[p]
			return ok
		})
	}, nil
}

func publishedPorts(c *engine.Container) (out []apinet.Port) {
	for i := range c.Networks {
		for _, p := range c.Networks[i].Ports {
			// Docker means the container's port, and takes the outer one, too.
			for _, n := range []uint16{p.Container, p.Host} {
				if port, ok := apinet.PortFrom(n, apinet.IPProtocol(p.Protocol)); ok {
					out = append(out, port)
				}
			}
		}
	}
	return out
}

func exposedPorts(c *engine.Container) (out []apinet.Port) {
	for p := range configOf(c, doorOf(c).Config).ExposedPorts {
		out = append(out, p)
	}
	return out
}

// A summary is container.Summary.
type summary struct {
	container.Summary
	// SizeRw and SizeRootFs are missing unless they were asked for, also when they are 0.
	SizeRw     *int64 `json:",omitempty"`
	SizeRootFs *int64 `json:",omitempty"`
	Ports      []port
	Health     *container.HealthSummary `json:",omitempty"`
}

// A port is container.PortSummary without an address where there is none.
type port struct {
	IP          string `json:",omitempty"`
	PrivatePort uint16
	PublicPort  uint16 `json:",omitempty"`
	Type        string
}

func summarise(c *engine.Container, v version, now time.Time) *summary {
	out := &summary{Summary: container.Summary{
		ID: c.ID, Names: []string{"/" + c.Name}, Image: c.Image, ImageID: string(c.ConfigDigest),
		Command: shownCommand(c.Command), Created: c.Created.Unix(), Labels: c.Labels,
		State: container.ContainerState(c.State.Status), Status: statusText(c, now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpointSettings(c, v)},
		Mounts:          mountPoints(c),
	}, SizeRw: c.WritableBytes, SizeRootFs: c.RootBytes, Ports: portList(c)}
	if out.Image == "" {
		out.Image = out.ImageID
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if c.WritableBytes != nil && *c.WritableBytes == 0 {
		out.SizeRw = nil
	}
	out.HostConfig.NetworkMode = c.NetworkMode
	if v >= 46 && c.Request != nil {
		out.HostConfig.Annotations = c.Request.Annotations
	}
	if v >= 52 {
		out.Health = &container.HealthSummary{Status: container.NoHealthcheck}
		if h := c.State.Health; h != nil {
			out.Health = &container.HealthSummary{Status: container.HealthStatus(h.Status), FailingStreak: h.FailingStreak}
		}
	}
	return out
}

// shownCommand is a command as docker ps shows it: arguments with spaces in quotation marks, and those in them left alone.
func shownCommand(command []string) string {
	var words []string
	for i, word := range command {
		if i > 0 && strings.Contains(word, " ") {
			word = "'" + word + "'"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// statusText is docker ps's.
func statusText(c *engine.Container, now time.Time) string {
	s := &c.State
	since := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch s.Status {
	case "running":
		if s.Health != nil {
			text := s.Health.Status
			if text == string(container.Starting) {
				text = "health: starting"
			}
			return fmt.Sprintf("Up %s (%s)", since(s.Started), text)
		}
		return "Up " + since(s.Started)
	case "paused":
		return "Up " + since(s.Started) + " (Paused)"
	case "restarting":
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, since(s.Finished))
	case "removing":
		return "Removal In Progress"
	case "dead":
		return "Dead"
	case "created":
		return "Created"
	}
	if s.Finished.IsZero() {
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, since(s.Finished))
}

// portList are the ports as docker ps shows them.
func portList(c *engine.Container) []port {
	out := []port{}
	ports := portMap(c)
	for p, bindings := range ports {
		if len(bindings) == 0 {
			out = append(out, port{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, b := range bindings {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err == nil {
				out = append(out, port{IP: ipText(b.HostIP), PrivatePort: p.Num(), PublicPort: uint16(n), Type: string(p.Proto())})
			}
		}
	}
	slices.SortFunc(out, func(a, b port) int {
		if a.PrivatePort != b.PrivatePort {
			return int(a.PrivatePort) - int(b.PrivatePort)
		}
		return strings.Compare(a.Type+a.IP, b.Type+b.IP)
	})
	return out
}

func ipText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
