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
	"github.com/spf13/pflag"

	"den/internal/daemon"
	"den/internal/engine"
	"den/internal/image"
	"den/internal/store"
)

// A pruneScope says what a prune is about.
type pruneScope struct {
	containers, images, cache, volumes bool
	known                              []string // filters
}

type pruneOptions struct {
	pruneScope
	all     bool
	values  []string // of --filter
	force   bool
	format  string
	limits  cacheLimits
	filters map[string][]string
	until   time.Time
}

// cacheLimits are how much cache stays, in docker's and in buildx's words.
type cacheLimits struct {
	keep, reserved, maxUsed, minFree string
}

func (l *cacheLimits) flags(f *pflag.FlagSet) {
	f.StringVar(&l.keep, "keep-storage", "", "Evict cache, least recently used first, down to this size")
	f.StringVar(&l.reserved, "reserved-space", "", "Like --keep-storage: cache of this size always stays")
	f.StringVar(&l.maxUsed, "max-used-space", "", "Evict only what is over this size")
	f.StringVar(&l.minFree, "min-free-space", "", "Evict only what it takes to have this much free on the disk")
}

// apply sets the limits in p and says whether there are any.
func (l *cacheLimits) apply(p *store.PruneOptions) (bool, error) {
	keep, err := byteSize("keep-storage", l.keep)
	if err == nil {
		p.KeepBytes, err = byteSize("reserved-space", l.reserved)
	}
	if err == nil {
		p.MaxUsedBytes, err = byteSize("max-used-space", l.maxUsed)
	}
	if err == nil {
		p.MinFreeBytes, err = byteSize("min-free-space", l.minFree)
	}
	p.KeepBytes = max(p.KeepBytes, keep)
	return p.KeepBytes > 0 || p.MaxUsedBytes > 0 || p.MinFreeBytes > 0, err
}

func newPrune(g *globals, io streams) *cobra.Command {
	o := &pruneOptions{pruneScope: pruneScope{containers: true, images: true, cache: true, known: []string{"until", "label", "label!"}}}
	cmd := o.command(g, io, "Remove unused containers, images and cache", `Remove stopped containers, untagged images, and cache that no image needs.

What other den processes use is never touched; they need not stop.`)
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Remove all images that no container uses, not just untagged ones, and all cache")
	f.BoolVar(&o.volumes, "volumes", false, "Remove named volumes that no container has, too")
	o.limits.flags(f)
	return cmd
}

// newCachePrune is docker builder prune and docker buildx prune.
func newCachePrune(g *globals, io streams) *cobra.Command {
	o := &pruneOptions{pruneScope: pruneScope{cache: true, known: []string{"until", "type", "id"}}}
	cmd := o.command(g, io, "Remove build cache", "Remove build cache that nobody uses: records of steps, and cache mounts.")
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Remove also cache that images share")
	f.Bool("verbose", false, "Accepted: what goes is always listed")
	hide(f, "verbose")
	o.limits.flags(f)
	return cmd
}

func newImagePrune(g *globals, io streams) *cobra.Command {
	o := &pruneOptions{pruneScope: pruneScope{images: true, known: []string{"until", "label", "label!"}}}
	cmd := o.command(g, io, "Remove unused images", "Remove untagged images that no container uses.")
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "Remove all images that no container uses, not just untagged ones")
	return cmd
}

func newContainerPrune(g *globals, io streams) *cobra.Command {
	o := &pruneOptions{pruneScope: pruneScope{containers: true, known: []string{"until", "label", "label!"}}}
	return o.command(g, io, "Remove stopped containers", "Remove all stopped containers.")
}

func (o *pruneOptions) command(g *globals, io streams, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "prune [OPTIONS]", Short: short, Long: long, Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPrune(cmd.Context(), g, o, io) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.values, "filter", nil, "Filter values ("+strings.Join(o.known, "=, ")+"=)")
	f.BoolVarP(&o.force, "force", "f", false, "Do not prompt for confirmation")
	f.StringVar(&o.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

// pruned is what a prune removed, in the words of Docker's API.
type pruned struct {
	ContainersDeleted []string
	VolumesDeleted    []string
	ImagesDeleted     []image.Removed
	CachesDeleted     []string
	SpaceReclaimed    int64
}

func runPrune(ctx context.Context, g *globals, o *pruneOptions, io streams) error {
	cache, err := o.parse(time.Now())
	if err != nil {
		return err
	}
	return withNames(ctx, g, io, func(d *daemon.Den) error {
		// Asked in here, because a plain user's den starts twice.
		if !o.force && !confirm(io, o.warning()) {
			return errors.New("prune has been cancelled; --force does it without asking")
		}
		var p pruned
		cache.Evicted = func(e store.CacheEntry) { p.CachesDeleted = append(p.CachesDeleted, e.ID) }
		err := o.names(ctx, d, &p)
		if err == nil {
			p.SpaceReclaimed, err = d.Store.Prune(ctx, cache)
		}
		return errors.Join(p.print(io, o.format), err)
	})
}

// parse reads the flags, and returns what is to become of the cache.
func (o *pruneOptions) parse(now time.Time) (cache store.PruneOptions, err error) {
	if o.filters, err = parseFilters(o.values); err != nil {
		return cache, err
	}
	if err := checkFilters(o.filters, o.known...); err != nil {
		return cache, err
	}
	if _, err := o.limits.apply(&cache); err != nil {
		return cache, err
	}
	if v := o.filters["until"]; len(v) > 0 {
		if o.until, err = parseTime("filter until", v[len(v)-1], now); err != nil {
			return cache, err
		}
		cache.Until = max(now.Sub(o.until), 1)
	}
	cache.All = o.all
	// Cache has no labels: a filter that asks for one leaves it alone.
	cache.OnlyGarbage = !o.cache || len(o.filters["label"]) > 0
	for _, name := range []string{"type", "id"} {
		if v := o.filters[name]; len(v) > 0 {
			cache.Filters = map[string][]string{"type": o.filters["type"], "id": o.filters["id"]}
		}
	}
	return cache, nil
}

func (o *pruneOptions) warning() string {
	var what []string
	add := func(wanted bool, some, all string) {
		switch {
		case wanted && o.all:
			what = append(what, all)
		case wanted:
			what = append(what, some)
		}
	}
	add(o.containers, "all stopped containers", "all stopped containers")
	add(o.images, "all untagged images", "all images without a container")
	add(o.cache, "cache that no image needs", "all cache")
	add(o.volumes, "all named volumes without a container", "all named volumes without a container")
	return "This will remove:\n  - " + strings.Join(what, "\n  - ") + "\n"
}

// names removes containers, volumes and images.
func (o *pruneOptions) names(ctx context.Context, d *daemon.Den, p *pruned) (err error) {
	if o.containers {
		p.ContainersDeleted, err = d.Containers().Prune(func(c *engine.Summary) bool {
			return !o.until.IsZero() && c.Created.After(o.until) || !matchesLabels(c, o.filters)
		})
		if err != nil {
			return err
		}
	}
	if o.volumes && len(o.filters["label"]) == 0 { // nor have volumes
		volumes, err := d.Containers().PruneVolumes(ctx, nil)
		if err != nil {
			return err
		}
		p.VolumesDeleted = volumes.Names
	}
	if o.images {
		p.ImagesDeleted, _, err = d.Images.Prune(ctx, image.PruneOptions{All: o.all, Filters: o.filters})
	}
	return err
}

// print writes what was removed under docker's headings.
func (p *pruned) print(io streams, format string) error {
	if format != "" {
		return printFormatted(io.out, format, p)
	}
	images := make([]string, len(p.ImagesDeleted))
	for i, r := range p.ImagesDeleted {
		images[i] = r.String()
	}
	caches := make([]string, len(p.CachesDeleted))
	for i, id := range p.CachesDeleted {
		caches[i] = shortKey(id)
	}
	printRemoved(io, "Deleted Containers:", p.ContainersDeleted)
	printRemoved(io, "Deleted Volumes:", p.VolumesDeleted)
	printRemoved(io, "Deleted Images:", images)
	printRemoved(io, "Deleted build cache objects:", caches)
	_, err := fmt.Fprintf(io.out, "Total reclaimed space: %s\n", units.HumanSize(float64(p.SpaceReclaimed)))
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
