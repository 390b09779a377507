package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/network"
	"den/internal/sandbox"
)

// checkCreate finds what cannot be done and puts docker's defaults in.
func (e *Engine) checkCreate(ctx context.Context, r *CreateRequest) error {
	r.Pull = ""
	r.Log, r.CIDFile = false, ""
	r.Name = strings.TrimPrefix(r.Name, "/")
	if err := e.checkNetworkMode(ctx, r); err != nil {
		return err
	}
	if err := e.checkPidMode(ctx, r); err != nil {
		return err
	}
	for _, m := range r.Mounts {
		if m.Kind == MountBind && !m.CreateSource {
			if err := bindSource(m); err != nil {
				return err
			}
		}
	}
	for _, link := range r.Links {
		name, _, _ := strings.Cut(trimSlash(link), ":")
		if _, err := e.find(name); errdefs.IsNotFound(err) {
			return invalid("could not get container for %s: %v", name, err)
		}
	}
	for _, check := range []func() error{r.checkRestart, r.checkHealth, r.checkNamespaces, r.checkLog} {
		if err := check(); err != nil {
			return err
		}
	}
	return r.RunRequest.check()
}

func (r *CreateRequest) checkRestart() error {
	p := &r.Restart
	switch p.Name {
	case "", "no":
		p.Name = "no"
	case "always", "unless-stopped", "on-failure":
		if r.Remove {
			return invalid("can't create 'AutoRemove' container with restart policy")
		}
	default:
		return invalid("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", p.Name)
	}
	if p.Max != 0 && p.Name != "on-failure" {
		return invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'")
	}
	if p.Max < 0 {
		return invalid("invalid restart policy: maximum retry count cannot be negative")
	}
	return nil
}

func (r *CreateRequest) checkHealth() error {
	h := r.Health
	if h == nil {
		return nil
	}
	for name, d := range map[string]int64{
		"Interval": int64(h.Interval), "Timeout": int64(h.Timeout), "StartPeriod": int64(h.StartPeriod), "StartInterval": int64(h.StartInterval),
	} {
		if d < 0 || d > 0 && d < 1e6 {
			return invalid("%s in Healthcheck cannot be less than 1ms", name)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "CMD", "CMD-SHELL", "NONE", "":
		default:
			return invalid("Unknown type %q in healthcheck (try 'CMD')", h.Test[0])
		}
	}
	return nil
}

// maxHostname is Linux's, and what docker checks.
const maxHostname = 64

// noContainer is an error of a creation that names another container: clients take what is not
// found for the image, and pull that.
func noContainer(name string) error { return invalid("No such container: %s", name) }

func (r *CreateRequest) checkNamespaces() error {
	if len(r.Hostname) > maxHostname {
		return invalid("hostname %q is too long (maximum %d bytes)", r.Hostname, maxHostname)
	}
	pids, _, _ := strings.Cut(r.PidMode, ":")
	if pids == "container" { // checkPidMode looks at it
		pids = ""
	}
	for name, mode := range map[string]string{"PID": pids, "UTS": r.UTSMode} {
		if mode != "" && mode != "host" && mode != "private" {
			return invalid("invalid %s mode: %s", name, mode)
		}
	}
	switch mode, _, _ := strings.Cut(r.IpcMode, ":"); mode {
	case "", "private", "shareable", "none", "host", "container":
	default:
		return invalid("invalid IPC mode: %s", r.IpcMode)
	}
	for _, d := range r.Devices {
		if !strings.HasPrefix(d.Source, "/") || strings.Trim(d.Access, "rwm") != "" {
			return invalid("error gathering device information while adding custom device %q: want PATH[:TARGET[:rwm]]", d.Source)
		}
	}
	return nil
}

func (r *CreateRequest) checkLog() error {
	switch r.LogConfig.Driver {
	case "":
		r.LogConfig.Driver = "json-file"
	case "json-file", "local", "none":
	default:
		return invalid("logger: no log driver named '%s' is registered; den has json-file, local and none", r.LogConfig.Driver)
	}
	if r.LogConfig.MaxBytes < 0 || r.LogConfig.MaxFiles < 0 {
		return invalid("log options: max-size and max-file cannot be negative")
	}
	return nil
}

// checkPidMode refuses the process ids of another container where den could not end what this one leaves behind.
func (e *Engine) checkPidMode(ctx context.Context, r *CreateRequest) error {
	other, ok := strings.CutPrefix(r.PidMode, "container:")
	if !ok {
		return nil
	}
	if k, ok := e.Exec.(interface{ OwnKernel() bool }); !ok || !k.OwnKernel() {
		return unsupported("pid mode %q: den could not end what a container leaves behind among the processes of another; run the program in that one (docker exec), or give both the host's process ids (--pid host)", r.PidMode)
	}
	l, err := e.mine(ctx, other)
	if errdefs.IsNotFound(err) {
		return noContainer(other)
	} else if err != nil {
		return err
	}
	beside, ok := strings.CutPrefix(r.NetworkMode, "container:")
	if ok {
		n, err := e.mine(ctx, beside) // checkNetworkMode found it
		ok = err == nil && n == l
	}
	if !ok {
		return unsupported("pid mode %q: on this rung who shares the process ids of a container shares its network, too (--network container:%s), or run the program in that one (docker exec)", r.PidMode, other)
	}
	return nil
}

// checkNetworkMode says what of the sandbox's two networks stands below.
func (e *Engine) checkNetworkMode(ctx context.Context, r *CreateRequest) error {
	mode := r.NetworkMode
	switch {
	case mode == sandbox.NetworkHost, mode == sandbox.NetworkNone:
		r.Network = mode
	case mode == "container:":
		return invalid("invalid container format container:<name|id>")
	case strings.HasPrefix(mode, "container:"):
		if r.Hostname != "" {
			return invalid("conflicting options: hostname and the network mode")
		}
		name := strings.TrimPrefix(mode, "container:")
		if _, err := e.mine(ctx, name); errdefs.IsNotFound(err) {
			return noContainer(name)
		} else if err != nil {
			return err
		}
		r.Network = sandbox.NetworkNone
	case e.Options.Networks == nil && (mode == "" || mode == "default" || mode == network.DefaultName):
		r.NetworkMode, r.Network = sandbox.NetworkHost, sandbox.NetworkHost
	case e.Options.Networks == nil:
		return unsupported("network %q: this den has host (that of the container around it) and none", mode)
	default:
		if mode == "" || mode == "default" {
			r.NetworkMode = network.DefaultName
		}
		r.Network = sandbox.NetworkNone
	}
	if r.connects() {
		e.addMain(ctx, r)
		return nil
	}
	if len(r.Links) > 0 && !strings.HasPrefix(mode, "container:") {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

// addMain puts the network of the container's mode first, unless it was asked for in full.
// One that is not there yet is missed at the start, as in docker.
func (e *Engine) addMain(ctx context.Context, r *CreateRequest) {
	id := r.NetworkMode
	n, err := e.Options.Networks.Network(ctx, id)
	for i, ep := range r.Endpoints {
		if ep.Network == id || err == nil && (ep.Network == n.Name || ep.Network == n.ID || n.Default && ep.Network == "default") {
			r.Endpoints = slices.Insert(slices.Delete(slices.Clone(r.Endpoints), i, i+1), 0, ep)
			return
		}
	}
	r.Endpoints = append([]network.EndpointRequest{{Network: id}}, r.Endpoints...)
}

// connects says that the container has places in den's networks.
func (r *CreateRequest) connects() bool {
	return r.NetworkMode != sandbox.NetworkHost && r.NetworkMode != sandbox.NetworkNone && !strings.HasPrefix(r.NetworkMode, "container:")
}

// cutMode splits docker's CONTAINER[:MODE].
func cutMode(spec string) (name, mode string) {
	name, mode, _ = strings.Cut(spec, ":")
	return name, mode
}
