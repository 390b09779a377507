package daemon

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"den/internal/sandbox"
	"den/internal/sandbox/sentry"
)

// trySentry is how to find out whether the sentry runs here, and on which
// platform. newExecutor and this are the places that know it.
func trySentry() func(context.Context) (platform string, err error) { return sentry.Try }

// newExecutor is what runs sandboxes on the rung that was chosen.
func (d *Den) newExecutor(c sandbox.Choice) (sandbox.Executor, error) {
	switch c.Rung {
	case sandbox.RungPrivileged, sandbox.RungUserns:
		return sandbox.NewNamespaces(sandbox.Options{Choice: c})
	case sandbox.RungSentry:
		return sentry.New(sentry.Options{Name: c.Name(), Platform: c.Platform})
	case sandbox.RungChroot:
		return sandbox.NewChroot(sandbox.Options{Choice: c})
	}
	return nil, fmt.Errorf("rung %s: this build of den has no executor for it yet: %w", c, errdefs.ErrNotImplemented)
}
