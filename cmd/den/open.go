package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"den/internal/daemon"
)

// daemonOptions are the global flags as the daemon takes them.
func (g *globals) daemonOptions(io streams) daemon.Options {
	say := func(line string) { fmt.Fprintln(io.err, "den:", line) }
	o := daemon.Options{
		StoreRoot: g.store, DataRoot: g.dataRoot, Isolation: g.isolation,
		Mirrors: g.mirrors, Insecure: g.insecure, Certs: g.certs, DaemonJSON: g.daemon, ConfigDir: g.config,
		Version: releaseVersion, Notice: say,
	}
	if g.debug {
		o.Debug = say
	}
	return o
}

// lookupEnv is os.LookupEnv with what the flags say instead.
func (g *globals) lookupEnv(name string) (string, bool) {
	if name == "DOCKER_CONFIG" && g.config != "" {
		return g.config, true
	}
	return os.LookupEnv(name)
}

// withDen opens den for one command and closes it after. A plain user's process
// moves into its user namespace first, which starts den again from the top.
func withDen(ctx context.Context, g *globals, io streams, fn func(*daemon.Den) error) error {
	o := g.daemonOptions(io)
	if err := daemon.Enter(ctx, o); err != nil {
		return err
	}
	return g.opened(ctx, o, fn)
}

// withNames is withDen for commands that touch no trees: they work also where
// no rung does.
func withNames(ctx context.Context, g *globals, io streams, fn func(*daemon.Den) error) error {
	o := g.daemonOptions(io)
	err := daemon.Enter(ctx, o)
	if err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotImplemented(err) {
		return err
	}
	return g.opened(ctx, o, fn)
}

func (g *globals) opened(ctx context.Context, o daemon.Options, fn func(*daemon.Den) error) (err error) {
	if os.Getenv(detachedEnv) == "" {
		for _, note := range g.notes {
			o.Notice(note)
		}
	}
	d, err := daemon.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return fn(d)
}
