package engine

import (
	"context"

	"github.com/containerd/errdefs"

	"den/internal/network"
)

// CreateNetwork makes a network.
func (e *Engine) CreateNetwork(_ context.Context, _ network.CreateRequest) (*network.Network, error) {
	return nil, errdefs.ErrNotImplemented
}
