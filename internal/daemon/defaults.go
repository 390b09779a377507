package daemon

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"den/internal/dockerapi"
	"den/internal/engine"
)

// withDefaultsOf gives containers what dockerd's flags say of those that say nothing themselves.
func withDefaultsOf(e dockerapi.Engine, o EngineOptions) (dockerapi.Engine, error) {
	d := &defaulted{Engine: e, init: o.Init}
	for _, text := range o.Ulimits {
		u, err := units.ParseUlimit(text)
		if err != nil {
			return nil, fmt.Errorf("--default-ulimit %.100q: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		d.ulimits = append(d.ulimits, engine.Ulimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return d, nil
}

type defaulted struct {
	dockerapi.Engine
	init    bool
	ulimits []engine.Ulimit
}

// Create fills in what the request leaves open.
func (d *defaulted) Create(ctx context.Context, r *engine.CreateRequest) (engine.Created, error) {
	r.Init = r.Init || d.init
	for _, u := range d.ulimits {
		if !limits(r.Ulimits, u.Name) {
			r.Ulimits = append(r.Ulimits, u)
		}
	}
	return d.Engine.Create(ctx, r)
}

func limits(all []engine.Ulimit, name string) bool {
	for _, u := range all {
		if u.Name == name {
			return true
		}
	}
	return false
}

// logConfig reads --log-driver and --log-opt.
func (o EngineOptions) logConfig() (container.LogConfig, error) {
	c := container.LogConfig{Type: orElse(o.LogDriver, "json-file"), Config: map[string]string{}}
	for _, option := range o.LogOptions {
		name, value, _ := strings.Cut(option, "=")
		c.Config[name] = value
	}
	if err := dockerapi.CheckLog(c); err != nil {
		return c, fmt.Errorf("--log-driver, --log-opt: %w", err)
	}
	return c, nil
}
