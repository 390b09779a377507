package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/image"
)

type imagesOptions struct {
	all     bool
	digests bool
	filters []string
	format  string
	noTrunc bool
	quiet   bool
}

func newImages(g *globals, io streams) *cobra.Command {
	o := &imagesOptions{}
	cmd := &cobra.Command{
		Use:   "images [OPTIONS] [REPOSITORY[:TAG]]",
		Short: "List images",
		Args:  rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImages(cmd.Context(), g, o, io, args)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Show all images (den keeps no intermediate ones)")
	f.BoolVar(&o.digests, "digests", false, "Show digests")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "Filter output (reference, dangling, label, before, since, until)")
	f.StringVar(&o.format, "format", "", "Format output with a Go template, or json")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Only show image IDs")
	return cmd
}

func runImages(ctx context.Context, g *globals, o *imagesOptions, io streams, args []string) error {
	filters, err := parseFilters(o.filters)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		filters["reference"] = append(filters["reference"], args[0])
	}
	t := imagesTable()
	t.format, t.quiet = o.format, o.quiet
	if o.digests {
		t.columns = slices.Insert(t.columns, 2, column{"Digest", "DIGEST"})
	}
	return withNames(ctx, g, io, func(d *daemon.Den) error {
		list, err := d.Images.List(ctx, filters)
		if err != nil {
			return err
		}
		var rows []map[string]any
		seen := map[string]bool{}
		for _, s := range list {
			for _, r := range s.Rows() {
				row := imageRow(r, o.noTrunc)
				if id := row["ID"].(string); o.quiet && seen[id] {
					continue
				} else {
					seen[id] = true
				}
				rows = append(rows, row)
			}
		}
		return t.print(io.out, rows)
	})
}

// imagesTable is that of docker images.
func imagesTable() table {
	return table{
		columns: []column{{"Repository", "REPOSITORY"}, {"Tag", "TAG"}, {"ID", "IMAGE ID"}, {"CreatedSince", "CREATED"}, {"Size", "SIZE"}},
		headers: map[string]string{"Digest": "DIGEST", "CreatedAt": "CREATED AT", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE", "VirtualSize": "VIRTUAL SIZE", "Platform": "PLATFORM", "Labels": "LABELS"},
		id:      "ID",
	}
}

func imageRow(r image.Row, noTrunc bool) map[string]any {
	platforms := make([]string, len(r.Platforms))
	for i, p := range r.Platforms {
		platforms[i] = p.OS + "/" + p.Architecture
		if p.Variant != "" {
			platforms[i] += "/" + p.Variant
		}
	}
	created := "N/A"
	if !r.Created.IsZero() {
		created = ago(r.Created)
	}
	size := float64(r.SizeBytes)
	return map[string]any{
		"Repository": r.Repository, "Tag": r.Tag, "Digest": r.Digest, "ID": shortDigest(string(r.ConfigDigest), noTrunc),
		"CreatedSince": created, "CreatedAt": r.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		"Size": units.HumanSizeWithPrecision(size, 3), "VirtualSize": units.HumanSize(size), "SharedSize": "N/A", "UniqueSize": "N/A", "Containers": "N/A",
		"Platform": strings.Join(platforms, ","), "Labels": joinLabels(r.Labels),
	}
}

func joinLabels(labels map[string]string) string {
	keys := slices.Sorted(maps.Keys(labels))
	for i, k := range keys {
		keys[i] = k + "=" + labels[k]
	}
	return strings.Join(keys, ",")
}

// shortDigest is a digest as docker shows it: 12 hexadecimal digits.
func shortDigest(d string, noTrunc bool) string {
	if noTrunc {
		return d
	}
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		hex = d
	}
	return hex[:min(12, len(hex))]
}

// parseFilters reads docker's --filter values.
func parseFilters(values []string) (map[string][]string, error) {
	filters := map[string][]string{}
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if !ok {
			return nil, &usageError{fmt.Sprintf("filter %q: want KEY=VALUE", v)}
		}
		key = strings.ToLower(strings.TrimSpace(key))
		filters[key] = append(filters[key], strings.TrimSpace(value))
	}
	return filters, nil
}
