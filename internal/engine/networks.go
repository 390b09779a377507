package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"den/internal/network"
)

// networks are den's; an error of class errdefs.ErrNotImplemented where it has none.
func (e *Engine) networks() (*network.Networks, error) {
	if e.Options.Networks == nil {
		return nil, unsupported("this den has no networks: containers share that of the container around it, or have none")
	}
	return e.Options.Networks, nil
}

// CreateNetwork makes a network.
func (e *Engine) CreateNetwork(ctx context.Context, r network.CreateRequest) (*network.Network, error) {
	ns, err := e.networks()
	if err != nil {
		return nil, err
	}
	n, err := ns.Create(ctx, r)
	if err != nil {
		return nil, err
	}
	e.networkEvent(n.ID, n.Name, "create", "")
	return n, nil
}

// Networks describes all networks.
func (e *Engine) Networks(ctx context.Context) ([]*network.Network, error) {
	if e.Options.Networks == nil {
		return nil, nil
	}
	return e.Options.Networks.List(ctx)
}

// Network describes a network.
func (e *Engine) Network(ctx context.Context, nameOrID string) (*network.Network, error) {
	if e.Options.Networks == nil {
		return nil, notFound("network %s not found", nameOrID)
	}
	return e.Options.Networks.Network(ctx, nameOrID)
}

// NetworkEndpoints are the containers of a network.
func (e *Engine) NetworkEndpoints(ctx context.Context, nameOrID string) ([]network.Endpoint, error) {
	n, err := e.Network(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	return e.Options.Networks.Endpoints(ctx, n.ID)
}

// RemoveNetwork removes a network without endpoints.
func (e *Engine) RemoveNetwork(ctx context.Context, nameOrID string) error {
	n, err := e.Network(ctx, nameOrID)
	if err != nil {
		return err
	}
	if err := e.Options.Networks.Remove(ctx, n.ID); err != nil {
		return err
	}
	e.networkEvent(n.ID, n.Name, "destroy", "")
	return nil
}

// ConnectNetwork puts a container into a network: now if it runs, else when it starts.
func (e *Engine) ConnectNetwork(ctx context.Context, nameOrID string, r network.EndpointRequest) error {
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		return err
	}
	n, err := e.Network(ctx, r.Network)
	if err != nil {
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	if !l.request.connects() {
		return &sentence{"container sharing network namespace with another container or host cannot be connected to any other network", errForbidden}
	}
	r.Network = n.Name
	next := *l.request
	for _, ep := range next.Endpoints {
		if ep.Network == n.Name || ep.Network == n.ID {
			return &sentence{"endpoint with name " + l.snapshot().Name + " already exists in network " + n.Name, errForbidden}
		}
	}
	next.Endpoints = append(slices.Clone(next.Endpoints), r)
	if run, err := l.running(); err == nil {
		full, err := run.c.completed(ctx, &next)
		if err != nil {
			return err
		}
		before, err := e.Options.Networks.Of(ctx, l.id)
		if err != nil {
			return err
		}
		if _, err := e.Options.Networks.Connect(ctx, l.id, run.sb.Pid(), run.space, full[len(full)-1]); err != nil {
			return err
		}
		e.networkEvent(n.ID, n.Name, "connect", l.id)
		if err := run.c.renewResolv(ctx, before); err != nil {
			return err
		}
	}
	return l.keepRequest(&next)
}

// renewResolv writes the running container's resolv.conf for the networks that it has now, as
// docker does: who was on the default bridge alone knew no names. What the container
// has changed itself stays.
func (c *container) renewResolv(ctx context.Context, before []network.Endpoint) error {
	now, err := c.engine.Options.Networks.Of(ctx, c.record.ID)
	if err != nil {
		return err
	}
	old, err := c.networkResolv(ctx, before)
	if err != nil {
		return err
	}
	next, err := c.networkResolv(ctx, now)
	if err != nil {
		return err
	}
	file := filepath.Join(c.engine.Store.ContainerPath(c.record.ID), "resolv.conf")
	text, err := readBounded(file, int64(len(old))+1)
	if err != nil || !bytes.Equal(text, old) || bytes.Equal(old, next) {
		return err
	}
	// In place: the file itself is mounted in the container.
	if err := os.WriteFile(file, next, 0o644); err != nil {
		return fmt.Errorf("container %s: %w", c.record.ID, err)
	}
	return nil
}

// completed are the endpoint requests of next, as a start would make them.
func (c *container) completed(ctx context.Context, next *CreateRequest) ([]network.EndpointRequest, error) {
	with := *c
	with.more = next
	return with.endpointRequests(ctx)
}

// DisconnectOptions refine DisconnectNetwork.
type DisconnectOptions struct{ Force bool }

// DisconnectNetwork takes a container out of a network.
func (e *Engine) DisconnectNetwork(ctx context.Context, nameOrID, networkNameOrID string, o DisconnectOptions) error {
	n, err := e.Network(ctx, networkNameOrID)
	if err != nil {
		return err
	}
	l, err := e.mine(ctx, nameOrID)
	if err != nil {
		if o.Force { // it is gone, and its endpoint is in the way
			return e.Options.Networks.Disconnect(ctx, trimSlash(nameOrID), nil, n.ID, o.Force)
		}
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	next := *l.request
	next.Endpoints = slices.DeleteFunc(slices.Clone(next.Endpoints), func(ep network.EndpointRequest) bool {
		return ep.Network == n.Name || ep.Network == n.ID || n.Default && ep.Network == "default"
	})
	run, err := l.running()
	if err == nil {
		space := run.space
		if space == nil {
			if space, err = e.Options.Networks.Driver().OpenSpace(ctx, l.id, run.sb.Pid()); err != nil && !o.Force {
				return err
			}
			if space != nil {
				defer func() { _ = space.Close() }()
			}
		}
		before, err := e.Options.Networks.Of(ctx, l.id)
		if err != nil {
			return err
		}
		if err := e.Options.Networks.Disconnect(ctx, l.id, space, n.ID, o.Force); err != nil {
			return err
		}
		e.networkEvent(n.ID, n.Name, "disconnect", l.id)
		if err := run.c.renewResolv(ctx, before); err != nil {
			return err
		}
	} else if len(next.Endpoints) == len(l.request.Endpoints) && !o.Force {
		return &sentence{"container " + l.id + " is not connected to network " + n.Name, errForbidden}
	}
	return l.keepRequest(&next)
}

// PruneNetworks removes the networks without endpoints that keep says nothing against, and
// that no container asks for.
func (e *Engine) PruneNetworks(ctx context.Context, keep func(*network.Network) bool) (Pruned, error) {
	all, err := e.Networks(ctx)
	if err != nil {
		return Pruned{}, err
	}
	wanted := map[string]bool{}
	containers, err := e.Containers(ctx)
	if err != nil {
		return Pruned{}, err
	}
	for _, c := range containers {
		for _, ne := range c.Networks {
			if c.State.Running {
				wanted[ne.Network] = true
			}
		}
	}
	var p Pruned
	var errs []error
	for _, n := range all {
		if n.Default || wanted[n.ID] || keep != nil && keep(n) {
			continue
		}
		endpoints, err := e.Options.Networks.Endpoints(ctx, n.ID)
		if err != nil || len(endpoints) > 0 {
			errs = append(errs, err)
			continue
		}
		if err := e.RemoveNetwork(ctx, n.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		p.Names = append(p.Names, n.Name)
	}
	if len(p.Names) > 0 {
		e.Emit(Event{Type: "network", Action: "prune", Attributes: map[string]string{"reclaimed": "0"}})
	}
	return p, errors.Join(errs...)
}
