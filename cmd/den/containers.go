package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/engine"
)

// containers opens den for a command that looks after containers: it needs no
// executor, so it works whatever the rung.
func containers(ctx context.Context, g *globals, io streams, fn func(*engine.Engine) error) error {
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		return fn(engine.New(engine.Options{Store: d.Store, Images: d.Images}))
	})
}

func newPs(g *globals, io streams) *cobra.Command {
	var all, noTrunc bool
	t := table{
		columns: []column{{"ID", "CONTAINER ID"}, {"Image", "IMAGE"}, {"Command", "COMMAND"}, {"CreatedAt", "CREATED"}, {"Status", "STATUS"}, {"Names", "NAMES"}},
		headers: map[string]string{"State": "STATE", "Labels": "LABELS"}, id: "ID",
	}
	cmd := &cobra.Command{
		Use: "ps [OPTIONS]", Short: "List this engine's containers", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				list, err := e.List()
				if err != nil {
					return err
				}
				var rows []map[string]any
				for _, c := range list {
					if all || c.Status == "running" {
						rows = append(rows, containerRow(c, noTrunc))
					}
				}
				return t.print(io.out, rows)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "Show all containers (default shows just running)")
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "Only display container IDs")
	f.StringVar(&t.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func containerRow(c engine.Summary, noTrunc bool) map[string]any {
	id, command := c.ID, strings.Join(c.Command, " ")
	if !noTrunc {
		id = id[:12]
		if len(command) > 20 {
			command = command[:19] + "…"
		}
	}
	labels := make([]string, 0, len(c.Labels))
	for k, v := range c.Labels {
		labels = append(labels, k+"="+v)
	}
	return map[string]any{
		"ID": id, "Image": c.Image, "Command": fmt.Sprintf("%q", command), "Names": c.Name, "State": c.Status,
		"CreatedAt": ago(c.Created), "Status": containerStatus(c), "Labels": strings.Join(labels, ","),
	}
}

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

func containerStatus(c engine.Summary) string {
	switch c.Status {
	case "running":
		return "Up " + units.HumanDuration(time.Since(c.Started))
	case "exited":
		return fmt.Sprintf("Exited (%d) %s", c.ExitCode, ago(c.Finished))
	}
	return strings.ToUpper(c.Status[:1]) + c.Status[1:]
}

func newLogs(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use: "logs CONTAINER", Short: "Print what a detached container has written", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				return e.Logs(args[0], io.out, io.err)
			})
		},
	}
}

func newStop(g *globals, io streams) *cobra.Command {
	var seconds int
	cmd := eachContainer(g, io, "stop [OPTIONS] CONTAINER [CONTAINER...]", "Stop running containers",
		func(ctx context.Context, e *engine.Engine, name string) error {
			return e.Stop(ctx, name, time.Duration(seconds)*time.Second)
		})
	cmd.Flags().IntVarP(&seconds, "time", "t", 10, "Seconds to wait before killing the container")
	return cmd
}

func newKill(g *globals, io streams) *cobra.Command {
	var name string
	cmd := eachContainer(g, io, "kill [OPTIONS] CONTAINER [CONTAINER...]", "Send a signal to running containers",
		func(_ context.Context, e *engine.Engine, container string) error {
			sig, err := engine.ParseSignal(name)
			if err != nil {
				return err
			}
			return e.Signal(container, sig)
		})
	cmd.Flags().StringVarP(&name, "signal", "s", "SIGKILL", "Signal to send")
	return cmd
}

func newRm(g *globals, io streams) *cobra.Command {
	var force bool
	cmd := eachContainer(g, io, "rm [OPTIONS] CONTAINER [CONTAINER...]", "Remove containers and their anonymous volumes",
		func(ctx context.Context, e *engine.Engine, name string) error { return e.Remove(ctx, name, force) })
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Kill a running container first")
	return cmd
}

func newWait(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER [CONTAINER...]", Short: "Wait until containers stop, then print their exit codes", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				for _, name := range args {
					code, err := e.Wait(cmd.Context(), name)
					if err != nil {
						return err
					}
					fmt.Fprintln(io.out, code)
				}
				return nil
			})
		},
	}
}

// eachContainer is a command that does one thing to each container named, and
// prints the names of those it was done to.
func eachContainer(g *globals, io streams, use, short string, do func(context.Context, *engine.Engine, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				var errs []error
				for _, name := range args {
					if err := do(cmd.Context(), e, name); err != nil {
						errs = append(errs, err)
						continue
					}
					fmt.Fprintln(io.out, name)
				}
				return errors.Join(errs...)
			})
		},
	}
}
