package daemon

import (
	"context"

	"den/internal/engine"
	"den/internal/network"
	"den/internal/oci"
	"den/internal/sys"
)

// Engine runs containers on the chosen rung.
func (d *Den) Engine(ctx context.Context) (*engine.Engine, error) { return d.engine(ctx, nil) }

// engine is Engine with networks, nil for none.
func (d *Den) engine(ctx context.Context, networks *network.Networks) (*engine.Engine, error) {
	r, err := d.Runner(ctx)
	if err != nil {
		return nil, err
	}
	return engine.New(engine.Options{
		Store: d.Store, Images: d.Images, Exec: r.Exec, Driver: r.Driver, InUserns: !sys.MakesDevices(), Recorded: !sys.MayChown(),
		Networks: networks, Log: func(err error) { d.options.Notice(err.Error()) },
	}), nil
}

// Containers looks after containers that exist. It needs no executor, so it
// works whatever the rung.
func (d *Den) Containers() *engine.Engine {
	return engine.New(engine.Options{Store: d.Store, Images: d.Images, InUserns: !sys.MakesDevices()})
}

// users names the containers that use an image. What cannot be read is no
// reason to hold on to an image: containers keep their layers by themselves.
func (d *Den) users(config oci.Digest) []string {
	users, err := d.Containers().Users(config)
	if err != nil {
		d.options.Notice(err.Error())
	}
	return users
}
