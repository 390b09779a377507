package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/image"
	"den/internal/store"
)

type pruneOptions struct {
	all     bool
	filters []string
	force   bool
	keep    string
}

func newPrune(g *globals, io streams) *cobra.Command {
	o := &pruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused images and cache",
		Long: `Remove untagged images, stopped containers, and cache that no image needs.

What other den processes use is never touched; they need not stop.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPrune(cmd.Context(), g, o, io) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Remove all images that no container uses, not just untagged ones")
	f.StringArrayVar(&o.filters, "filter", nil, "Filter values (until=<duration>, label=<key>[=<value>])")
	f.BoolVarP(&o.force, "force", "f", false, "Do not ask")
	f.StringVar(&o.keep, "keep-storage", "", "Amount of cache to keep")
	return cmd
}

func runPrune(ctx context.Context, g *globals, o *pruneOptions, io streams) error {
	filters, err := parseFilters(o.filters)
	if err != nil {
		return err
	}
	keep, err := byteSize("keep-storage", o.keep)
	if err != nil {
		return err
	}
	var until time.Duration
	if v := filters["until"]; len(v) > 0 {
		if until, err = time.ParseDuration(v[len(v)-1]); err != nil {
			return &usageError{fmt.Sprintf("filter until=%s: want a duration such as 24h", v[len(v)-1])}
		}
	}
	if !o.force && !confirm(io, "This removes untagged images, stopped containers and cache that no image needs.") {
		return nil
	}
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		removed, _, err := d.Images.Prune(ctx, image.PruneOptions{All: o.all, Filters: filters})
		for _, r := range removed {
			fmt.Fprintln(io.out, r)
		}
		if err != nil {
			return err
		}
		freed, err := d.Store.Prune(ctx, store.PruneOptions{KeepBytes: keep, Until: until, All: o.all})
		if err != nil {
			return err
		}
		fmt.Fprintf(io.out, "Total reclaimed space: %s\n", units.HumanSize(float64(freed)))
		return nil
	})
}

func confirm(io streams, what string) bool {
	fmt.Fprintf(io.err, "WARNING! %s\nAre you sure you want to continue? [y/N] ", what)
	line, err := bufio.NewReader(io.in).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return err == nil && (answer == "y" || answer == "yes")
}
