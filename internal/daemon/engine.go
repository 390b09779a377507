package daemon

import (
	"context"

	"den/internal/engine"
)

// Engine runs containers on the chosen rung.
func (d *Den) Engine(ctx context.Context) (*engine.Engine, error) {
	r, err := d.Runner(ctx)
	if err != nil {
		return nil, err
	}
	return engine.New(engine.Options{Store: d.Store, Images: d.Images, Exec: r.Exec, Driver: r.Driver}), nil
}
