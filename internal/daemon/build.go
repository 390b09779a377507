package daemon

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"den/internal/build"
	"den/internal/sandbox"
	"den/internal/sys"
)

// Builder solves build requests. Rung and driver are chosen when the first RUN
// needs them, so that an unchanged build pays for no probe.
func (d *Den) Builder() *build.Builder {
	return build.New(build.Options{
		Store: d.Store, Images: d.Images, InUserns: !sys.MakesDevices(), Recorded: !sys.MayChown(), Transport: d.options.Transport,
		Emulators: d.emulators,
		Runner: func(ctx context.Context) (*build.Runner, error) {
			r, err := d.Runner(ctx)
			if err != nil {
				return nil, err
			}
			return &build.Runner{Driver: r.Driver, Exec: r.Exec}, nil
		},
	})
}

// emulators says why those of the kernel are of no use.
func (d *Den) emulators(ctx context.Context) error {
	c, err := d.Rung(ctx)
	if err != nil || c.Rung != sandbox.RungSentry {
		return nil
	}
	return fmt.Errorf("rung %s runs programs of this machine's own architecture only, since the sentry knows no emulators; "+
		"a stage with --platform=$BUILDPLATFORM can cross-compile, and rung userns or privileged runs them (den doctor says how to get it): %w", c.Name(), errdefs.ErrNotImplemented)
}
