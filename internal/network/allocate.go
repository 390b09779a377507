package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"den/internal/failpoint"
)

// publish opens ports and records them as they were assigned.
func (ns *Networks) publish(ctx context.Context, n *Network, e *Endpoint, ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	e.Ports = slices.Clone(ports)
	for i := range e.Ports {
		p := &e.Ports[i]
		if !p.HostIP.IsValid() {
			p.HostIP = n.hostIP(ns.o.HostIP)
		}
	}
	if err := ns.allocated(e); err != nil {
		return err
	}
	assigned, err := ns.driver.Publish(ctx, n, e)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("network.publish.record"); err != nil {
		return err
	}
	e.Ports = assigned
	return writeJSON(ns.endpointPath(n.ID, e.Container), e)
}

// allocated refuses a port that another container of this engine has. It is asked
// for dockerd's sentence; who comes between finds the port in use.
func (ns *Networks) allocated(e *Endpoint) error {
	all, err := ns.all()
	if err != nil {
		return err
	}
	for _, n := range all {
		es, err := ReadEndpoints(ns.network(n.ID))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, o := range es {
			if o.Container == e.Container {
				continue
			}
			for _, p := range e.Ports {
				if slices.ContainsFunc(o.Ports, p.collides) {
					return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): Bind for %s failed: port is already allocated", e.Name, e.ID, hostPort(p.HostIP, p.Host))
				}
			}
		}
	}
	return nil
}

// collides says that p, which wants one certain port, cannot be had while o is open.
func (p Port) collides(o Port) bool {
	if p.Protocol != o.Protocol || p.Host == 0 || p.Host != o.Host || p.HostEnd > p.Host {
		return false
	}
	if !p.HostIP.IsValid() || !o.HostIP.IsValid() {
		return true
	}
	return p.HostIP == o.HostIP || p.HostIP.Is4() == o.HostIP.Is4() && (p.HostIP.IsUnspecified() || o.HostIP.IsUnspecified())
}
