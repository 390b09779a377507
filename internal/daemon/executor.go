package daemon

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"den/internal/sandbox"
)

// trySentry is how to find out whether the sentry runs here, and on which
// platform; nil in a build without it. newExecutor and this are the places that know.
func trySentry() func(context.Context) (platform string, err error) { return nil }

// newExecutor is what runs sandboxes on the rung that was chosen.
func (d *Den) newExecutor(c sandbox.Choice) (sandbox.Executor, error) {
	switch c.Rung {
	case sandbox.RungPrivileged, sandbox.RungUserns:
		return sandbox.NewNamespaces(sandbox.Options{Choice: c})
	}
	return nil, fmt.Errorf("rung %s: this build of den has no executor for it yet: %w", c, errdefs.ErrNotImplemented)
}
