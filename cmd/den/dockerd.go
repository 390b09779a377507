package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"den/internal/dockerd"
	"den/internal/sandbox"
	"den/internal/sys"
)

// newDockerd is den serve with dockerd's name and places.
func newDockerd(g *globals, io streams, start dockerd.Start) *cobra.Command {
	o := serveOptions{dockerd: true, certDir: start.CertDir, refuse: start.Refuse}
	cmd := &cobra.Command{
		Use: dockerd.Daemon + " [OPTIONS]", Short: "den serve, with dockerd's name and places", Args: exactArgs(0), Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd, g, io) },
	}
	o.bind(cmd.Flags(), g)
	budgetFlags(cmd.Flags(), g)
	return cmd
}

// entryNames are the programs of docker:dind's image that den stands for.
func entryNames() []string {
	return []string{dockerd.Daemon, dockerd.Entrypoint, dockerd.Client, dockerd.Wrapper, dockerd.Init, dockerName}
}

// newEntry is one of them. Its arguments are read by nobody before it.
func newEntry(name string, io streams) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "Docker's name for a part of den serve", Hidden: true,
		DisableFlagParsing: true, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error { return enter(cmd.Context(), name, args, io) },
	}
}

// enter starts what an entry point's arguments ask for, in this process.
func enter(ctx context.Context, name string, args []string, io streams) error {
	if name == dockerd.Init {
		return beInit(args)
	}
	start := dockerd.Begin(name, args, dockerd.Surrounding{
		Env: os.Getenv, SocketDir: writableDir, UID: callerUID(), Commands: dockerCommands(),
		Socket: func(path string) bool { _, err := os.Stat(path); return err == nil },
	})
	if name == dockerName {
		return runDocker(ctx, args, io)
	}
	for _, e := range start.Env {
		key, value, _ := strings.Cut(e, "=")
		if err := os.Setenv(key, value); err != nil {
			return err
		}
	}
	g := newGlobals()
	var cmd *cobra.Command
	switch base := filepath.Base(start.Program); {
	case base == dockerd.Daemon:
		cmd = asRoot(newDockerd(g, io, start), g, io)
		cmd.SetFlagErrorFunc(flagError)
	case base == dockerName:
		return runDocker(ctx, start.Args, io)
	case base == name || !contains(entryNames(), base):
		return become(start.Program, start.Args)
	default:
		return enter(ctx, base, start.Args, io)
	}
	cmd.SetArgs(start.Args)
	return cmd.ExecuteContext(ctx)
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// become replaces this process by a program.
func become(program string, args []string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("execute %s: %w", program, errors.Unwrap(err))
	}
	return os.NewSyscallError("execute "+path, unix.Exec(path, append([]string{program}, args...), os.Environ()))
}

// beInit is docker-init, which is tini: options, perhaps "--", and a program.
func beInit(args []string) error {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		option := args[0]
		args = args[1:]
		if option == "--" {
			break
		}
		if option == "--version" {
			fmt.Println("den-init version " + releaseVersion)
			return nil
		}
		if (option == "-p" || option == "-e") && len(args) > 0 {
			args = args[1:] // with a value
		}
	}
	if len(args) == 0 {
		return &usageError{"docker-init: name a program to run: docker-init [OPTIONS] -- PROGRAM [ARG...]"}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("docker-init: execute %s: %w", args[0], errors.Unwrap(err))
	}
	return sys.BecomeReaper(path, args, os.Environ())
}

// reapsOrphans says that this process is a container's first one, whom the kernel gives
// everybody that lost its parent. A server cannot reap those beside its own children, so
// that it becomes the child of who can. Sockets that were handed over name this process.
func reapsOrphans() bool { return os.Getpid() == 1 && os.Getenv("LISTEN_FDS") == "" }

// becomeInit starts den again, below a reaper.
func becomeInit(argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return sys.BecomeReaper(self, argv, os.Environ())
}

// callerUID is the user that den was started as, also in the user namespace that it made.
func callerUID() int {
	if !sandbox.Entered() {
		return os.Geteuid()
	}
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return os.Geteuid()
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, count int
		if n, _ := fmt.Sscan(line, &inside, &outside, &count); n == 3 && inside == os.Geteuid() {
			return outside
		}
	}
	return os.Geteuid()
}
