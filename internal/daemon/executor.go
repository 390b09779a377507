package daemon

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"den/internal/sandbox"
	"den/internal/sandbox/sentry"
)

// trySentry is how to find out whether the sentry runs here, and on which
// platform. newExecutor, expectSentry and this are the places that know it.
func trySentry() func(context.Context) (platform string, err error) { return sentry.Try }

// expectSentry has a sentry make itself ready for a sandbox on that network while it is found out whether sentries run
// here; nil where it does not depend on that, or where no sandbox is expected.
func expectSentry(c sandbox.Choice, network string) *sentry.Spare {
	if network == "" || c.Rung != sandbox.RungSentry {
		return nil
	}
	return sentry.NewSpare(network)
}

// newExecutor is what runs sandboxes on the rung that was chosen. The spare sentry is its own then, or has ended.
func (d *Den) newExecutor(c sandbox.Choice, spare *sentry.Spare) (sandbox.Executor, error) {
	if c.Rung != sandbox.RungSentry {
		spare.End()
	}
	switch c.Rung {
	case sandbox.RungPrivileged, sandbox.RungUserns:
		return sandbox.NewNamespaces(sandbox.Options{Choice: c})
	case sandbox.RungSentry:
		return sentry.New(sentry.Options{Name: c.Name(), Platform: c.Platform, Spare: spare})
	case sandbox.RungChroot:
		return sandbox.NewChroot(sandbox.Options{Choice: c})
	}
	return nil, fmt.Errorf("rung %s: this build of den has no executor for it yet: %w", c, errdefs.ErrNotImplemented)
}
