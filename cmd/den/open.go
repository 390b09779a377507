package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"den/internal/daemon"
)

// daemonOptions are the global flags as the daemon takes them.
func (g *globals) daemonOptions(io streams) (daemon.Options, error) {
	say := func(line string) { fmt.Fprintln(io.err, "den:", line) }
	o := daemon.Options{
		StoreRoot: g.store, BaseStores: g.bases, DataRoot: g.dataRoot, Isolation: g.isolation, StorageDriver: g.driver, Durability: g.durable,
		Mirrors: g.mirrors, Insecure: g.insecure, Certs: g.certs, DaemonJSON: g.daemon, ConfigDir: g.config,
		Version: releaseVersion, Notice: say,
	}
	if g.debug {
		o.Debug = say
	}
	var err error
	if o.MaxBytes, err = byteSize("max-size", g.maxSize); err != nil {
		return o, err
	}
	o.MinFreeBytes, err = byteSize("min-free", g.minFree)
	return o, err
}

// budgetFlags are the limits of commands that write much. Every command that
// takes none obeys the environment's.
func budgetFlags(f *pflag.FlagSet, g *globals) {
	f.StringVar(&g.maxSize, "max-size", g.maxSize, "Cap of the shared store: cache is evicted for what is written, least recently used first (also $DEN_STORE_MAX_SIZE)")
	f.StringVar(&g.minFree, "min-free", g.minFree, "Disk space that the store leaves free (also $DEN_STORE_MIN_FREE)")
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
	o, err := g.daemonOptions(io)
	if err != nil {
		return err
	}
	return g.entered(ctx, o, fn)
}

// entered is withDen with options of the caller's.
func (g *globals) entered(ctx context.Context, o daemon.Options, fn func(*daemon.Den) error) error {
	if err := daemon.Enter(ctx, &o); err != nil {
		return err
	}
	return g.opened(ctx, o, fn)
}

// withNames is withDen for commands that can do without trees: they work also where
// no rung does. Images that come are kept as blobs then.
func withNames(ctx context.Context, g *globals, io streams, fn func(*daemon.Den) error) error {
	o, err := g.daemonOptions(io)
	if err != nil {
		return err
	}
	return g.named(ctx, o, fn)
}

// named is withNames with options of the caller's.
func (g *globals) named(ctx context.Context, o daemon.Options, fn func(*daemon.Den) error) error {
	err := daemon.Enter(ctx, &o)
	if err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotImplemented(err) {
		return err
	}
	o.NoTrees = err
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
