package daemon

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"

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
	var err error
	d.log, err = o.logConfig()
	return d, err
}

type defaulted struct {
	dockerapi.Engine
	init    bool
	ulimits []engine.Ulimit
	log     engine.LogConfig
}

// Create fills in what the request leaves open.
func (d *defaulted) Create(ctx context.Context, r *engine.CreateRequest) (engine.Created, error) {
	r.Init = r.Init || d.init
	for _, u := range d.ulimits {
		if !limits(r.Ulimits, u.Name) {
			r.Ulimits = append(r.Ulimits, u)
		}
	}
	// Who names no driver is given json-file by the door before.
	if r.LogConfig == (engine.LogConfig{}) || r.LogConfig == (engine.LogConfig{Driver: "json-file"}) {
		r.LogConfig = d.log
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
func (o EngineOptions) logConfig() (c engine.LogConfig, err error) {
	switch o.LogDriver {
	case "", "json-file", "local", "none":
		c.Driver = o.LogDriver
	default:
		return c, fmt.Errorf("--log-driver %.40q: den has json-file, local and none: %w", o.LogDriver, errdefs.ErrInvalidArgument)
	}
	for _, option := range o.LogOptions {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "max-size":
			c.MaxBytes, err = units.RAMInBytes(value)
		case "max-file":
			c.MaxFiles, err = strconv.Atoi(value)
		case "mode":
			c.NonBlocking = value == "non-blocking"
		case "compress", "labels", "labels-regex", "env", "env-regex", "tag", "max-buffer-size":
		default:
			err = fmt.Errorf("unknown log opt %q for %s log driver", name, orElse(o.LogDriver, "json-file"))
		}
		if err != nil || c.MaxBytes < 0 || c.MaxFiles < 0 {
			return c, fmt.Errorf("--log-opt %.100q: %w", option, errdefs.ErrInvalidArgument)
		}
	}
	return c, nil
}
