package main

import (
	"context"
	"errors"
	"fmt"

	"den/internal/daemon"
)

// daemonOptions are the global flags as the daemon takes them.
func (g *globals) daemonOptions(io streams) daemon.Options {
	return daemon.Options{
		StoreRoot: g.store, DataRoot: g.dataRoot, Isolation: g.isolation,
		Mirrors: g.mirrors, Insecure: g.insecure, Version: releaseVersion,
		Notice: func(line string) { fmt.Fprintln(io.err, "den:", line) },
	}
}

// withDen opens den for one command and closes it after. A plain user's process
// moves into its user namespace first, which starts den again from the top.
func withDen(ctx context.Context, g *globals, io streams, fn func(*daemon.Den) error) (err error) {
	o := g.daemonOptions(io)
	if err := daemon.Enter(ctx, o); err != nil {
		return err
	}
	d, err := daemon.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return fn(d)
}
