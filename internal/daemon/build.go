package daemon

import (
	"context"

	"den/internal/build"
	"den/internal/sys"
)

// Builder solves build requests. Rung and driver are chosen when the first RUN
// needs them, so that an unchanged build pays for no probe.
func (d *Den) Builder() *build.Builder {
	return build.New(build.Options{
		Store: d.Store, Images: d.Images, InUserns: !sys.MakesDevices(), Transport: d.options.Transport,
		Runner: func(ctx context.Context) (*build.Runner, error) {
			r, err := d.Runner(ctx)
			if err != nil {
				return nil, err
			}
			return &build.Runner{Driver: r.Driver, Exec: r.Exec}, nil
		},
	})
}
