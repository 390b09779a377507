package main

import (
	"context"
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/store"
)

type storeGCOptions struct {
	all     bool
	dryRun  bool
	filters []string
	format  string
	limits  cacheLimits
}

func newStoreGC(g *globals, io streams) *cobra.Command {
	o := &storeGCOptions{}
	cmd := &cobra.Command{
		Use:   "gc [OPTIONS]",
		Short: "Collect what nothing names, beside the store's users",
		Long: `Collect what nothing names and nobody uses, what dead processes left, and, with
--all, a size or --filter, build cache. Others need not stop.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runStoreGC(cmd.Context(), g, o, io) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Evict all build cache, not just what is over a size")
	f.BoolVar(&o.dryRun, "dry-run", false, "Print the plan and remove nothing")
	f.StringArrayVar(&o.filters, "filter", nil, "Evict only cache that matches (until=<duration>, type=, id=)")
	f.StringVar(&o.format, "format", "", "Format output with a Go template, or json")
	o.limits.flags(f)
	return cmd
}

// prune are the options as the store takes them; evict says that build cache
// may go at all.
func (o *storeGCOptions) prune() (p store.PruneOptions, evict bool, err error) {
	filters, err := parseFilters(o.filters)
	if err == nil {
		err = checkFilters(filters, "until", "type", "id")
	}
	if err != nil {
		return p, false, err
	}
	limited, err := o.limits.apply(&p)
	if err != nil {
		return p, false, err
	}
	if v := filters["until"]; len(v) > 0 {
		now := time.Now()
		t, err := parseTime("filter until", v[len(v)-1], now)
		if err != nil {
			return p, false, err
		}
		p.Until = max(now.Sub(t), 1)
		delete(filters, "until")
	}
	p.All, p.Filters = o.all || limited, filters
	return p, o.all || len(o.filters) > 0 || limited, nil
}

func runStoreGC(ctx context.Context, g *globals, o *storeGCOptions, io streams) error {
	p, evict, err := o.prune()
	if err != nil {
		return err
	}
	if !evict {
		p.OnlyGarbage = true
	}
	return withNames(ctx, g, io, func(d *daemon.Den) error {
		if o.dryRun {
			plan, err := d.Store.PlanGC(ctx, p)
			if err != nil {
				return err
			}
			return printPlan(io, o.format, plan)
		}
		freed, err := d.Store.Prune(ctx, p)
		if err != nil {
			return err
		}
		if o.format != "" {
			return printFormatted(io.out, o.format, map[string]any{"FreedBytes": freed})
		}
		fmt.Fprintf(io.out, "Total reclaimed space: %s\n", units.HumanSize(float64(freed)))
		return nil
	})
}

func printPlan(io streams, format string, p store.Plan) error {
	if format != "" {
		return printFormatted(io.out, format, p)
	}
	for _, e := range p.Evict {
		fmt.Fprintf(io.out, "evict   %-8s %10s  %s  %s\n", shortType(e), units.HumanSize(float64(e.SizeBytes)),
			shortKey(e.ID), ellipsis(e.Description, maxDescription))
	}
	for _, obj := range p.Objects {
		fmt.Fprintf(io.out, "remove  %-8s %10s  %s\n", obj.Kind, units.HumanSize(float64(obj.SizeBytes)), obj.ID)
	}
	for _, rel := range p.Forget {
		fmt.Fprintf(io.out, "forget  %s\n", rel)
	}
	fmt.Fprintf(io.out, "This would free %s and leave %s; what is in use stays.\n",
		units.HumanSize(float64(p.FreedBytes)), units.HumanSize(float64(p.LeftBytes)))
	return nil
}

func shortType(e store.CacheEntry) string {
	if e.Type == "regular" {
		return "record"
	}
	return "mount"
}
