package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/engine"
	"den/internal/oci"
)

type inspectOptions struct {
	format   string
	platform string
	kind     string
}

func newInspect(g *globals, io streams) *cobra.Command {
	o := &inspectOptions{}
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NAME|ID [NAME|ID...]",
		Short: "Show what is known of containers and images",
		Args:  rangeArgs(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runInspect(cmd.Context(), g, o, io, args)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.format, "format", "f", "", "Format output with a Go template, or json")
	f.StringVar(&o.platform, "platform", "", "Inspect one platform's image of several")
	f.StringVar(&o.kind, "type", "", "Only inspect objects of the given type (image, container)")
	return cmd
}

func runInspect(ctx context.Context, g *globals, o *inspectOptions, io streams, args []string) error {
	p, err := parsePlatform(o.platform)
	if err != nil {
		return err
	}
	if o.kind != "" && o.kind != "image" && o.kind != "container" {
		return &usageError{fmt.Sprintf("type %q: den knows image and container", o.kind)}
	}
	return withNames(ctx, g, io, func(d *daemon.Den) error {
		found := []any{}
		var errs []error
		for _, name := range args {
			x, err := inspect(ctx, d, o.kind, name, p)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			found = append(found, x)
		}
		if o.format == "" || o.format == "json" {
			errs = append(errs, printFormatted(io.out, o.format, found))
			return errors.Join(errs...)
		}
		for _, x := range found {
			errs = append(errs, printFormatted(io.out, o.format, x))
		}
		return errors.Join(errs...)
	})
}

// inspect looks for a container, then for an image, as docker does.
func inspect(ctx context.Context, d *daemon.Den, kind, name string, p *oci.Platform) (any, error) {
	if kind != "image" {
		c, err := d.Containers().Inspect(name)
		if err == nil {
			return inspectedContainer(c), nil
		}
		if kind == "container" || !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return d.Images.Inspect(ctx, name, p)
}

// containerInspection is the part of docker's container inspect that den knows.
type containerInspection struct {
	ID      string `json:"Id"`
	Created string
	Path    string
	Args    []string
	State   containerState
	Image   string
	Name    string
	Config  containerConfig
}

type containerState struct {
	Status                                       string
	Running, Paused, Restarting, OOMKilled, Dead bool
	ExitCode                                     int
	Error                                        string
	StartedAt, FinishedAt                        string
}

type containerConfig struct {
	Image  string
	Labels map[string]string
	Tty    bool
}

func inspectedContainer(c *engine.Summary) *containerInspection {
	x := &containerInspection{
		ID: c.ID, Created: c.Created.Format(time.RFC3339Nano), Args: []string{}, Image: string(c.ConfigDigest), Name: "/" + c.Name,
		State: containerState{
			Status: c.Status, Running: c.Running(), Dead: c.Status == "dead", OOMKilled: c.OOMKilled, ExitCode: c.ExitCode, Error: c.Error,
			StartedAt: c.Started.Format(time.RFC3339Nano), FinishedAt: c.Finished.Format(time.RFC3339Nano),
		},
		Config: containerConfig{Image: c.Image, Labels: c.Labels, Tty: c.TTY},
	}
	if len(c.Command) > 0 {
		x.Path, x.Args = c.Command[0], c.Command[1:]
	}
	return x
}
