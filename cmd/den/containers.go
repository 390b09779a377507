package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/engine"
)

// containers opens den for a command that looks after containers: it needs no
// executor, so it works whatever the rung.
func containers(ctx context.Context, g *globals, io streams, fn func(*engine.Engine) error) error {
	return withNames(ctx, g, io, func(d *daemon.Den) error { return fn(d.Containers()) })
}

type logsOptions struct {
	follow     bool
	tail       string
	since      string
	until      string
	timestamps bool
}

func newLogs(g *globals, io streams) *cobra.Command {
	o := &logsOptions{}
	cmd := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER", Short: "Print what a detached container has written", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := o.parse(time.Now())
			if err != nil {
				return err
			}
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				l, err := e.Logs(cmd.Context(), args[0], opts)
				if err != nil {
					return err
				}
				return errors.Join(l.Copy(cmd.Context(), io.out, io.err), l.Close())
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "Follow log output")
	f.StringVarP(&o.tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	f.StringVar(&o.since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	f.StringVar(&o.until, "until", "", "Show logs before a timestamp or relative")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "Show timestamps")
	return cmd
}

func (o *logsOptions) parse(now time.Time) (l engine.LogOptions, err error) {
	l = engine.LogOptions{Follow: o.follow, Tail: -1, Timestamps: o.timestamps}
	if o.tail != "" && o.tail != "all" {
		if l.Tail, err = strconv.Atoi(o.tail); err != nil {
			return l, &usageError{fmt.Sprintf("tail %q: want a number or all", o.tail)}
		}
	}
	if l.Since, err = parseTime("since", o.since, now); err != nil {
		return l, err
	}
	l.Until, err = parseTime("until", o.until, now)
	return l, err
}

// parseTime reads what docker takes as a time: a duration before now, seconds
// since 1970, or a date.
func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return time.UnixMicro(int64(f * 1e6)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, &usageError{fmt.Sprintf("%s %q: want a duration such as 10m or a time such as 2006-01-02T15:04:05Z", flag, s)}
}

func newStop(g *globals, io streams) *cobra.Command {
	var seconds int
	var signal string
	cmd := eachContainer(g, io, "stop [OPTIONS] CONTAINER [CONTAINER...]", "Stop running containers",
		func(ctx context.Context, e *engine.Engine, name string) error {
			o := engine.StopOptions{Signal: signal}
			if seconds >= 0 {
				o.Seconds = &seconds
			}
			if err := e.Stop(ctx, name, o); !errdefs.IsNotModified(err) {
				return err
			}
			return nil
		})
	cmd.Flags().IntVarP(&seconds, "timeout", "t", -1, "Seconds to wait before killing the container (default 10, or the container's --stop-timeout)")
	cmd.Flags().Lookup("timeout").DefValue = "0" // the help says what it is
	cmd.Flags().IntVar(&seconds, "time", -1, "Seconds to wait before killing the container")
	hide(cmd.Flags(), "time")
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
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
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] CONTAINER [CONTAINER...]", Short: "Remove containers and their anonymous volumes", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Removing deletes trees, which a plain user can only in the namespace.
			return withDen(cmd.Context(), g, io, func(d *daemon.Den) error {
				return each(io, args, func(name string) error {
					return d.Containers().Remove(cmd.Context(), name, engine.RemoveOptions{Force: force, Volumes: true})
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Kill a running container first")
	cmd.Flags().BoolP("volumes", "v", false, "Accepted: anonymous volumes go with their container")
	hide(cmd.Flags(), "volumes")
	return cmd
}

func newWait(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER [CONTAINER...]", Short: "Wait until containers stop, then print their exit codes", Args: rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				var errs []error
				for _, name := range args {
					ended, err := e.Wait(cmd.Context(), name, engine.WaitNotRunning)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					r := <-ended
					if r.Err != nil {
						errs = append(errs, r.Err)
						continue
					}
					fmt.Fprintln(io.out, r.Code)
				}
				return errors.Join(errs...)
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
				return each(io, args, func(name string) error { return do(cmd.Context(), e, name) })
			})
		},
	}
}

func each(io streams, names []string, do func(name string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(io.out, name)
	}
	return errors.Join(errs...)
}

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

func containerStatus(c *engine.Summary) string {
	switch c.Status {
	case "running":
		return "Up " + units.HumanDuration(time.Since(c.Started))
	case "exited":
		return fmt.Sprintf("Exited (%d) %s", c.ExitCode, ago(c.Finished))
	}
	return strings.ToUpper(c.Status[:1]) + c.Status[1:]
}
