package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// PruneContainers removes the containers that do not run and that keep, if not nil, says
// nothing against.
func (e *Engine) PruneContainers(ctx context.Context, keep func(*Container) bool) (Pruned, error) {
	all, err := e.Containers(ctx, WithSizes)
	if err != nil {
		return Pruned{}, err
	}
	var p Pruned
	var errs []error
	for _, c := range all {
		if c.State.Running || keep != nil && keep(c) {
			continue
		}
		err := e.Remove(ctx, c.ID, RemoveOptions{})
		switch {
		case err == nil:
			p.Names = append(p.Names, c.ID)
			if c.WritableBytes != nil {
				p.Bytes += *c.WritableBytes
			}
		case errdefs.IsNotFound(err), errdefs.IsConflict(err): // somebody was faster
		default:
			errs = append(errs, err)
		}
	}
	if len(p.Names) > 0 {
		e.Emit(Event{Type: "container", Action: "prune", Attributes: map[string]string{"reclaimed": fmt.Sprint(p.Bytes)}})
	}
	return p, errors.Join(errs...)
}
