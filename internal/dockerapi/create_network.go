package dockerapi

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	apinet "github.com/moby/moby/api/types/network"

	"den/internal/engine"
	"den/internal/network"
)

// logOption reads one --log-opt.
func logOption(l *engine.LogConfig, key, value string) error {
	var err error
	switch key {
	case "max-size":
		if value == "-1" {
			return nil // no limit, which is json-file's default
		}
		l.MaxBytes, err = units.FromHumanSize(value)
		if err == nil && l.MaxBytes <= 0 {
			err = fmt.Errorf("%s is not positive", value)
		}
	case "max-file":
		l.MaxFiles, err = strconv.Atoi(value)
		if err == nil && l.MaxFiles < 1 {
			err = fmt.Errorf("max-file cannot be less than 1")
		}
	case "mode":
		switch value {
		case "", "blocking":
		case "non-blocking":
			l.NonBlocking = true
		default:
			err = fmt.Errorf("logging mode %q is neither blocking nor non-blocking", value)
		}
	case "max-buffer-size", "compress", "labels", "labels-regex", "env", "env-regex", "tag":
		// They change how a log is written, not what is read.
	default:
		return invalid("unknown log opt '%s' for %s log driver", key, l.Driver)
	}
	if err != nil {
		return invalid("invalid log opt %s: %v", key, err)
	}
	return nil
}

// ports translates PortBindings.
func (b *createBody) ports(r *engine.CreateRequest) error {
	r.PublishAll = b.HostConfig.PublishAllPorts
	ports := slices.SortedFunc(maps.Keys(b.HostConfig.PortBindings), func(a, b apinet.Port) int {
		return strings.Compare(a.String(), b.String())
	})
	for _, port := range ports {
		if port.Num() == 0 || port.Proto() != apinet.TCP && port.Proto() != apinet.UDP {
			return invalid("invalid port specification: %q: den publishes tcp and udp ports", port)
		}
		for _, binding := range b.HostConfig.PortBindings[port] {
			p := network.Port{Protocol: string(port.Proto()), Container: port.Num(), HostIP: binding.HostIP}
			if err := hostPorts(&p, binding.HostPort); err != nil {
				return invalid("invalid port specification: %q: %v", binding.HostPort, err)
			}
			r.Ports = append(r.Ports, p)
		}
	}
	return nil
}

// hostPorts reads "", "8080" or "8080-8090".
func hostPorts(p *network.Port, s string) error {
	if s == "" {
		return nil
	}
	first, last, ranged := strings.Cut(s, "-")
	n, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return fmt.Errorf("invalid port %q", first)
	}
	p.Host = uint16(n)
	if !ranged {
		return nil
	}
	n, err = strconv.ParseUint(last, 10, 16)
	if err != nil || uint16(n) < p.Host || p.Host == 0 {
		return fmt.Errorf("invalid range of ports %q", s)
	}
	p.HostEnd = uint16(n)
	return nil
}

// endpoints translates NetworkMode and NetworkingConfig.
func (b *createBody) endpoints(r *engine.CreateRequest) error {
	h := b.HostConfig
	r.NetworkMode = string(h.NetworkMode)
	r.Links = h.Links
	if h.NetworkMode.IsContainer() && len(h.PortBindings) > 0 {
		return invalid("conflicting options: port publishing and the container type network mode")
	}
	if h.NetworkMode.IsHost() || h.NetworkMode.IsNone() || h.NetworkMode.IsContainer() {
		return nil
	}
	config := b.NetworkingConfig.EndpointsConfig
	for _, name := range slices.Sorted(maps.Keys(config)) {
		e, err := endpointRequest(name, config[name])
		if err != nil {
			return err
		}
		if e.Network == apinet.NetworkDefault {
			e.Network = apinet.NetworkBridge
		}
		if config[name] != nil {
			for _, l := range config[name].Links {
				if !slices.Contains(r.Links, l) {
					r.Links = append(slices.Clip(r.Links), l)
				}
			}
		}
		if e.Network == apinet.NetworkHost || e.Network == apinet.NetworkNone {
			return invalid("conflicting options: network %q and network %q", r.NetworkMode, e.Network)
		}
		r.Endpoints = append(r.Endpoints, e)
	}
	return nil
}

// endpointRequest translates one endpoint's settings; nil ones ask for nothing.
func endpointRequest(name string, e *apinet.EndpointSettings) (network.EndpointRequest, error) {
	r := network.EndpointRequest{Network: name}
	if e == nil {
		return r, nil
	}
	r.Aliases = e.Aliases
	r.MAC = net.HardwareAddr(e.MacAddress)
	if len(r.MAC) != 0 && len(r.MAC) != 6 {
		return r, invalid("invalid MAC address: %s", r.MAC)
	}
	for _, l := range e.Links {
		target, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = target
		}
		if r.Links == nil {
			r.Links = map[string]string{}
		}
		r.Links[alias] = target
	}
	if c := e.IPAMConfig; c != nil {
		if c.IPv4Address.IsValid() && !c.IPv4Address.Unmap().Is4() {
			return r, invalid("invalid IPv4 address: %s", c.IPv4Address)
		}
		if c.IPv6Address.IsValid() && !c.IPv6Address.Is6() {
			return r, invalid("invalid IPv6 address: %s", c.IPv6Address)
		}
		r.IPv4, r.IPv6 = c.IPv4Address.Unmap(), c.IPv6Address
	}
	return r, nil
}
