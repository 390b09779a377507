package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"den/internal/daemon"
	"den/internal/store"
)

// newStore groups the commands that look after the shared store itself.
func newStore(g *globals, io streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Look into and after the shared store",
		Args:  unknownCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newStoreCreate(g, io), newStoreDf(g, io), newStoreGC(g, io), newStoreVerify(g, io), newStoreLocks(g, io),
		newStorePromote(g, io), newStoreExport(g, io), newStoreImport(g, io))
	return cmd
}

func newStoreDf(g *globals, io streams) *cobra.Command {
	var format string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "df [OPTIONS]",
		Short: "Show what takes how much of the store",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withNames(cmd.Context(), g, io, func(d *daemon.Den) error {
				if verbose {
					return printCache(cmd.Context(), d, io, format)
				}
				return printUsage(cmd.Context(), d, io, format)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output with a Go template, or json")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "List each cache record and cache mount")
	return cmd
}

// A usagePart is a line of den store df.
type usagePart struct {
	name string
	of   store.UsageOf
}

func printUsage(ctx context.Context, d *daemon.Den, io streams, format string) error {
	u, err := d.Store.Usage(ctx)
	if err != nil {
		return err
	}
	parts := []usagePart{
		{"Blobs", u.Blobs}, {"Layers", u.Layers}, {"Cache records", u.Records},
		{"Cache mounts", u.CacheMounts}, {"Volumes", u.Volumes}, {"Containers", u.Containers},
		{"Under way", u.Drafts}, {"Reserved", store.UsageOf{Bytes: u.ReservedBytes}},
	}
	for _, b := range u.Bases {
		parts = append(parts, usagePart{b.Root + ": blobs", b.Blobs}, usagePart{b.Root + ": layers", b.Layers},
			usagePart{b.Root + ": records", b.Records})
	}
	ground, err := d.Ground()
	if err != nil {
		return err
	}
	parts = append(parts, groundParts(ground)...)
	var rows []map[string]any
	for _, p := range parts {
		rows = append(rows, map[string]any{
			"Type": p.name, "TotalCount": strconv.Itoa(p.of.Count), "Active": strconv.Itoa(p.of.Active),
			"Size": units.HumanSize(float64(p.of.Bytes)), "Reclaimable": reclaimable(p.of),
			"SizeBytes": p.of.Bytes, "ReclaimableBytes": p.of.ReclaimableBytes,
		})
	}
	t := table{format: format, columns: []column{
		{"Type", "TYPE"}, {"TotalCount", "TOTAL"}, {"Active", "ACTIVE"}, {"Size", "SIZE"}, {"Reclaimable", "RECLAIMABLE"},
	}}
	return t.print(io.out, rows)
}

// groundParts say what bounds the store besides its own limits.
func groundParts(g daemon.Ground) []usagePart {
	switch {
	case g.Image != nil:
		return []usagePart{{"Image, of " + units.BytesSize(float64(g.Image.SizeBytes)), store.UsageOf{Count: 1, Active: 1, Bytes: g.Image.HostBytes}}}
	case g.TmpfsBytes > 0:
		return []usagePart{{"Memory, of " + units.BytesSize(float64(g.CapBytes())), store.UsageOf{Count: 1, Active: 1, Bytes: g.TmpfsUsedBytes}}}
	}
	return nil
}

// reclaimable is docker's way to say how much could go.
func reclaimable(u store.UsageOf) string {
	s := units.HumanSize(float64(u.ReclaimableBytes))
	if u.Bytes > 0 {
		s += fmt.Sprintf(" (%d%%)", u.ReclaimableBytes*100/u.Bytes)
	}
	return s
}

func printCache(ctx context.Context, d *daemon.Den, io streams, format string) error {
	entries, err := d.Store.CacheEntries(ctx)
	if err != nil {
		return err
	}
	rows := make([]map[string]any, len(entries))
	for i, e := range entries {
		rows[i] = cacheRow(e)
	}
	t := table{format: format, columns: cacheColumns()}
	return t.print(io.out, rows)
}

func cacheColumns() []column {
	return []column{
		{"ID", "CACHE ID"}, {"CacheType", "TYPE"}, {"Size", "SIZE"}, {"LastUsedSince", "LAST USED"},
		{"Shared", "SHARED"}, {"InUse", "IN USE"}, {"Description", "DESCRIPTION"},
	}
}

func cacheRow(e store.CacheEntry) map[string]any {
	return map[string]any{
		"ID": shortKey(e.ID), "CacheType": e.Type, "Size": units.HumanSize(float64(e.SizeBytes)), "SizeBytes": e.SizeBytes,
		"LastUsedSince": ago(e.LastUsed), "LastUsedAt": e.LastUsed.UTC().Format("2006-01-02T15:04:05Z"),
		"CreatedAt": e.Created.UTC().Format("2006-01-02T15:04:05Z"),
		"Shared":    e.Shared, "InUse": e.InUse, "Description": ellipsis(e.Description, maxDescription),
	}
}

// maxDescription keeps a table's line on a terminal's.
const maxDescription = 60

// shortKey is what a person needs of a record's key; other ids stay.
func shortKey(id string) string {
	const prefix, digits = "sha256:", 12
	if len(id) == len(prefix)+64 && id[:len(prefix)] == prefix {
		return id[len(prefix) : len(prefix)+digits]
	}
	return id
}
