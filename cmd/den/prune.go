package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/engine"
	"den/internal/image"
	"den/internal/store"
)

type pruneOptions struct {
	all     bool
	filters []string
	force   bool
	keep    string
	volumes bool
}

func newPrune(g *globals, io streams) *cobra.Command {
	o := &pruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused containers, images and cache",
		Long: `Remove stopped containers, untagged images, and cache that no image needs.

What other den processes use is never touched; they need not stop.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPrune(cmd.Context(), g, o, io) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Remove all images that no container uses, not just untagged ones, and all cache")
	f.StringArrayVar(&o.filters, "filter", nil, "Filter values (until=<duration>, label=<key>[=<value>])")
	f.BoolVarP(&o.force, "force", "f", false, "Do not prompt for confirmation")
	f.StringVar(&o.keep, "keep-storage", "", "Amount of cache to keep")
	f.BoolVar(&o.volumes, "volumes", false, "Remove named volumes that no container has, too")
	return cmd
}

func runPrune(ctx context.Context, g *globals, o *pruneOptions, io streams) error {
	filters, err := parseFilters(o.filters)
	if err != nil {
		return err
	}
	if err := checkFilters(filters, "until", "label", "label!"); err != nil {
		return err
	}
	keep, err := byteSize("keep-storage", o.keep)
	if err != nil {
		return err
	}
	until, err := o.before(filters, time.Now())
	if err != nil {
		return err
	}
	return withDen(ctx, g, io, func(d *daemon.Den) error {
		// Asked in here, because a plain user's den starts twice.
		if !o.force && !confirm(io, o.warning()) {
			return errors.New("prune has been cancelled; --force does it without asking")
		}
		if err := o.pruneNames(ctx, d, io, filters, until); err != nil {
			return err
		}
		// Cache has no labels: a filter that asks for one leaves it alone.
		s := store.PruneOptions{KeepBytes: keep, All: o.all, OnlyGarbage: len(filters["label"]) > 0}
		if !until.IsZero() {
			s.Until = max(time.Since(until), 1)
		}
		freed, err := d.Store.Prune(ctx, s)
		if err != nil {
			return err
		}
		fmt.Fprintf(io.out, "Total reclaimed space: %s\n", units.HumanSize(float64(freed)))
		return nil
	})
}

func (o *pruneOptions) warning() string {
	what := []string{"all stopped containers", "all untagged images", "cache that no image needs"}
	if o.all {
		what[1], what[2] = "all images without a container", "all cache"
	}
	if o.volumes {
		what = append(what, "all named volumes without a container")
	}
	return "This will remove:\n  - " + strings.Join(what, "\n  - ") + "\n"
}

// before is the time that until names: what was made later stays.
func (o *pruneOptions) before(filters map[string][]string, now time.Time) (time.Time, error) {
	v := filters["until"]
	if len(v) == 0 {
		return time.Time{}, nil
	}
	return parseTime("filter until", v[len(v)-1], now)
}

// pruneNames removes containers, volumes and images, with docker's headings.
func (o *pruneOptions) pruneNames(ctx context.Context, d *daemon.Den, io streams, filters map[string][]string, until time.Time) error {
	e := d.Containers()
	removed, err := e.Prune(func(c *engine.Summary) bool {
		return !until.IsZero() && c.Created.After(until) || !matchesLabels(c, filters)
	})
	printRemoved(io, "Deleted Containers:", removed)
	if err != nil {
		return err
	}
	if o.volumes && len(filters["label"]) == 0 { // nor have volumes
		removed, err := e.PruneVolumes()
		printRemoved(io, "Deleted Volumes:", removed)
		if err != nil {
			return err
		}
	}
	images, _, err := d.Images.Prune(ctx, image.PruneOptions{All: o.all, Filters: filters})
	lines := make([]string, len(images))
	for i, r := range images {
		lines[i] = r.String()
	}
	printRemoved(io, "Deleted Images:", lines)
	return err
}

func matchesLabels(c *engine.Summary, filters map[string][]string) bool {
	has := func(v string) bool { return matchesFilter(c, "label", v) }
	for _, v := range filters["label"] {
		if !has(v) {
			return false
		}
	}
	return !slices.ContainsFunc(filters["label!"], has)
}

func printRemoved(io streams, heading string, lines []string) {
	if len(lines) > 0 {
		fmt.Fprintf(io.out, "%s\n%s\n\n", heading, strings.Join(lines, "\n"))
	}
}

func confirm(io streams, what string) bool {
	fmt.Fprintf(io.err, "WARNING! %s\nAre you sure you want to continue? [y/N] ", what)
	line, err := bufio.NewReader(io.in).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return err == nil && (answer == "y" || answer == "yes")
}
