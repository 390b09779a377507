package daemon

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"den/internal/build"
	"den/internal/dockerapi"
	"den/internal/image"
	"den/internal/registry"
	"den/internal/sandbox"
	"den/internal/sys"
)

// Builder solves build requests. Rung and driver are chosen when the first RUN
// needs them, so that an unchanged build pays for no probe.
func (d *Den) Builder() *build.Builder { return d.builder(d.Images) }

func (d *Den) builder(images *image.Images) *build.Builder {
	return build.New(build.Options{
		Store: d.Store, Images: images, InUserns: !sys.MakesDevices(), Recorded: !sys.MayChown(), Transport: d.options.Transport,
		Emulators: d.emulators,
		Runner: func(ctx context.Context) (*build.Runner, error) {
			r, err := d.runnerFor(ctx, sandbox.NetworkHost) // of nearly every step
			if err != nil {
				return nil, err
			}
			return &build.Runner{Driver: r.Driver, Exec: r.Exec}, nil
		},
	})
}

// access is what a request of the Docker API uses, with its own credentials for registries.
func (d *Den) access(f registry.CredentialFunc) dockerapi.Access {
	if f == nil {
		return dockerapi.Access{Images: d.Images, Registry: d.Registry, Builder: d.Builder()}
	}
	reg := d.Registry.WithCredentials(f)
	images := d.images(reg)
	return dockerapi.Access{Images: images, Registry: reg, Builder: d.builder(images)}
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
