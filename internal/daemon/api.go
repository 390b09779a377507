package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"den/internal/dockerapi"
	"den/internal/engine"
	"den/internal/network"
	"den/internal/progress"
	"den/internal/sandbox"
	"den/internal/socket"
)

// An api is what answers requests, once it is open.
type api struct {
	den        *Den
	engine     *engine.Engine
	networks   *network.Networks // nil without
	handler    http.Handler
	supervised chan error
	// live says that containers can outlive this process.
	live bool
}

// openAPI opens the store, chooses the rung and takes over the containers that are there. base ends
// when den does.
func openAPI(ctx, base context.Context, o Options, s ServeOptions) (_ *api, err error) {
	d, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	r, err := d.Runner(ctx)
	if err != nil {
		return nil, err
	}
	networks, choice, err := d.Networks(ctx, s.Engine)
	if errdefs.IsNotImplemented(err) { // containers have the outer network then
		networks, choice.Why, err = nil, strings.TrimPrefix(err.Error(), "networks: "), nil
	}
	if err != nil {
		return nil, err
	}
	sayNetworks(o, networks, choice)
	e, err := d.engine(ctx, networks)
	if err != nil {
		return nil, err
	}
	served, err := withDefaultsOf(warnsOfLimits(dockerapi.For(e), r.limits()), s.Engine)
	if err != nil {
		return nil, err
	}
	logs, err := s.Engine.logConfig()
	if err != nil {
		return nil, err
	}
	_, live := r.Exec.(sandbox.Adopter)
	a := &api{den: d, engine: e, networks: networks, live: live, supervised: make(chan error, 1)}
	facts := facts{den: d, runner: r, serve: s}
	a.handler = dockerapi.New(dockerapi.Options{
		Engine: served, Access: d.access, Store: d.Store, StorageDriver: r.Driver.Name(), DefaultLog: logs, Info: facts.info, Version: o.Version, Commit: s.Engine.Commit, BuildTime: s.Engine.BuildTime,
		SocketPath: socketPath(s.Listeners), Log: logger(o),
	})
	e.Begin(ctx) // before anybody asks
	go func() { a.supervised <- e.Supervise(base) }()
	// What dockerd calls a completed initialization.
	o.Notice(fmt.Sprintf("ready on rung %s; storage driver %s, store %s; den doctor says more", r.Choice, r.Driver.Name(), d.Store.Root()))
	return a, nil
}

func sayNetworks(o Options, networks *network.Networks, choice network.Choice) {
	if networks == nil {
		o.Notice("networks: " + choice.Why)
		return
	}
	o.Debug("networks: " + choice.Driver + ": " + choice.Why)
}

// socketPath is the first unix socket that is served.
func socketPath(listeners []*socket.Listener) string {
	for _, l := range listeners {
		if l.Address.Network == socket.Unix {
			return l.Address.Name
		}
	}
	return ""
}

// running says whether a container runs, also one that waits to be started again.
func (a *api) running(context.Context) bool {
	list, err := a.engine.List()
	if err != nil {
		return true // nobody ends den for a record that cannot be read
	}
	for i := range list {
		if list[i].Running() {
			return true
		}
	}
	return false
}

// shutdown ends containers: all but those that are to go on living.
func (a *api) shutdown(ctx context.Context, s ServeOptions) error {
	a.den.leaveSwitches()
	if s.ShutdownTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.ShutdownTimeout)
		defer cancel()
	}
	mode := engine.EndAll
	if s.LiveRestore && a.live {
		mode = engine.EndDependent
	}
	err := a.engine.Shutdown(ctx, mode)
	if a.networks != nil {
		err = errors.Join(err, a.networks.Settle(ctx))
	}
	return err
}

// close waits for who supervises, whose context has ended, and closes the store.
func (a *api) close() error {
	err := <-a.supervised
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, a.den.Close())
}

// unavailable answers every request with the reason why den could not open.
func unavailable(err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		sentence(w, http.StatusServiceUnavailable, progress.Plain(err.Error()))
	})
}

// refuse answers who speaks plain HTTP to a port that is there for health checks only.
func refuse(w http.ResponseWriter, _ *http.Request) {
	sentence(w, http.StatusBadRequest, fmt.Sprintf("this den serves TLS: set DOCKER_HOST=tcp://docker:%s, DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH to the client directory below DOCKER_TLS_CERTDIR; "+
		"or start it with an empty DOCKER_TLS_CERTDIR to serve plain HTTP here", socket.TLSPort))
}
