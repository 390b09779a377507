package ops

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/util/archutil"

	"den/internal/oci"
)

// Refused says why the command cannot run on this machine, or on the rung.
func (o *execOp) Refused(ctx context.Context) error { return o.env.canRun(ctx, o.platform) }

// canRun returns nil if programs for p run on this machine, by itself or by an
// emulator that is registered with the kernel (binfmt_misc).
func (e *Env) canRun(ctx context.Context, p oci.Platform) error {
	p = platforms.Normalize(p)
	native := platforms.DefaultSpec()
	if p.OS != native.OS {
		return fmt.Errorf("platform %s: den runs %s programs only: %w", platforms.Format(p), native.OS, errdefs.ErrNotImplemented)
	}
	if platforms.Only(native).Match(p) {
		return nil
	}
	if e.Emulators != nil && p.Architecture != native.Architecture {
		if err := e.Emulators(ctx); err != nil {
			return fmt.Errorf("platform %s: %w", platforms.Format(p), err)
		}
	}
	// What follows runs a test program for each architecture, once.
	supported := archutil.SupportedPlatforms(false)
	names := make([]string, len(supported))
	for i, s := range supported {
		if platforms.Only(s).Match(p) {
			return nil
		}
		names[i] = platforms.Format(s)
	}
	if p.Architecture == native.Architecture {
		return fmt.Errorf("platform %s: this machine's processor runs only %s: %w",
			platforms.Format(p), strings.Join(names, ", "), errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("platform %s: this machine runs %s and no emulator is registered; "+
		"register one on the host with `docker run --privileged --rm tonistiigi/binfmt --install %s`: %w",
		platforms.Format(p), strings.Join(names, ", "), p.Architecture, errdefs.ErrFailedPrecondition)
}
