package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"den/internal/daemon"
	"den/internal/dockerd"
	"den/internal/socket"
)

func newServe(g *globals, io streams) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve [OPTIONS]",
		Short: "Answer the Docker Engine API on a socket",
		Long: "Answer the Docker Engine API on unix sockets and TCP ports, as dockerd does, until SIGTERM.\n" +
			"It takes dockerd's flags and daemon.json. When it ends its containers end, unless --live-restore.\n\n" +
			"Exit codes: 0 after SIGTERM, 1 when it cannot serve, 125 for a mistake in the command line.",
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd, g, io) },
	}
	o.bind(cmd.Flags(), g)
	budgetFlags(cmd.Flags(), g)
	return cmd
}

// run listens before it does anything else, so that whoever connects from then on waits
// instead of failing, also while den moves into its user namespace.
func (o *serveOptions) run(cmd *cobra.Command, g *globals, io streams) error {
	ctx := cmd.Context()
	if err := o.configure(cmd, g); err != nil {
		return err
	}
	if o.validate {
		fmt.Fprintln(io.out, "configuration OK")
		return nil
	}
	tuneServer()
	if reapsOrphans() {
		return becomeInit(os.Args)
	}
	listeners, err := o.listen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	remove, err := writePidFile(o.pidFile)
	if err != nil {
		return err
	}
	defer remove()
	undo, err := socket.Hand(listeners)
	if err != nil {
		return err
	}
	do, err := g.daemonOptions(io)
	do.Adopts = true
	if err == nil {
		err = daemon.Enter(ctx, &do)
	}
	undo()
	if err != nil {
		return err
	}
	return o.serveOn(ctx, g, do, listeners)
}

// serveOn is what follows once den is where it can do its work.
func (o *serveOptions) serveOn(ctx context.Context, g *globals, do daemon.Options, listeners []*socket.Listener) error {
	ignoreHangup(do.Notice)
	for _, note := range g.notes {
		do.Notice(note)
	}
	for _, l := range listeners {
		if o.refuse != "" && l.Address.String() == o.refuse {
			o.serve.Refusing = append(o.serve.Refusing, l)
			continue
		}
		o.serve.Listeners = append(o.serve.Listeners, l)
	}
	var err error
	if o.serve.TLS, err = o.certificates(do.Notice); err != nil {
		return err
	}
	o.sayListening(do.Notice)
	ending, stop, err := exitWith(o.exitWith)
	if err != nil {
		return err
	}
	defer stop()
	o.serve.ExitWith = ending
	v := version()
	o.serve.Engine.Commit, o.serve.Engine.BuildTime = v.GitCommit, v.BuiltAt
	return daemon.Serve(ctx, do, o.serve)
}

// configure reads daemon.json and what follows from flags.
func (o *serveOptions) configure(cmd *cobra.Command, g *globals) error {
	file, named := g.daemon, true
	if file == "" {
		file, named = dockerd.DefaultConfigFile, false
	}
	if err := dockerd.MergeFile(cmd.Flags(), file, named); err != nil {
		return err
	}
	if err := o.complete(g); err != nil {
		return err
	}
	if o.dockerd {
		return o.placeStore(g)
	}
	return nil
}

// tuneServer undoes what suits commands that end soon.
func tuneServer() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(serverGCPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(-1)
		debug.SetMemoryLimit(serverMemory)
	}
}

// A server's heap is collected early: it stands there for days.
const (
	serverGCPercent = 75
	serverMemory    = 1 << 40
)

// ignoreHangup takes the signal that asks dockerd to read its configuration again.
func ignoreHangup(notice func(string)) {
	signal.Reset(unix.SIGHUP)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	go func() {
		for range hangups {
			notice("SIGHUP: the configuration is read at the start only; start den serve again to change it")
		}
	}()
}

// sayListening tells where, and warns of what is open to everybody, as dockerd does.
func (o *serveOptions) sayListening(notice func(string)) {
	for _, l := range o.serve.Listeners {
		if l.Address.Network != socket.Unix && o.serve.TLS == nil {
			notice(fmt.Sprintf("WARNING: API is accessible on http://%s without encryption: access to it is equivalent to root in this container; "+
				"serve TLS (--tlsverify, or DOCKER_TLS_CERTDIR), or listen on a unix socket only", strings.TrimPrefix(l.Address.String(), "tcp://")))
		}
		notice("API listen on " + strings.TrimPrefix(l.Address.String(), "unix://"))
	}
}

// writePidFile writes the file that --pidfile names; the function removes it.
func writePidFile(file string) (func(), error) {
	if file == "" {
		return func() {}, nil
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, "%d", os.Getpid()), 0o644); err != nil {
		return nil, fmt.Errorf("write --pidfile: %w", err)
	}
	return func() { os.Remove(file) }, nil
}
