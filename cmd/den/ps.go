package main

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"den/internal/engine"
)

type psOptions struct {
	all     bool
	last    int
	latest  bool
	filters []string
	noTrunc bool
}

func newPs(g *globals, io streams) *cobra.Command {
	o := &psOptions{}
	t := table{
		columns: []column{
			{"ID", "CONTAINER ID"}, {"Image", "IMAGE"}, {"Command", "COMMAND"}, {"RunningFor", "CREATED"},
			{"Status", "STATUS"}, {"Ports", "PORTS"}, {"Names", "NAMES"},
		},
		headers: map[string]string{
			"CreatedAt": "CREATED AT", "State": "STATE", "Labels": "LABELS", "Mounts": "MOUNTS",
			"Networks": "NETWORKS", "Size": "SIZE", "LocalVolumes": "LOCAL VOLUMES",
		},
		id: "ID",
	}
	cmd := &cobra.Command{
		Use: "ps [OPTIONS]", Short: "List this engine's containers", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filters, err := parseFilters(o.filters)
			if err != nil {
				return err
			}
			if err := checkFilters(filters, "id", "name", "label", "status", "exited", "ancestor", "volume"); err != nil {
				return err
			}
			return containers(cmd.Context(), g, io, func(e *engine.Engine) error {
				list, err := e.List()
				if err != nil {
					return err
				}
				rows := []map[string]any{}
				for _, c := range o.chosen(list, filters) {
					rows = append(rows, containerRow(c, o.noTrunc))
				}
				return t.print(io.out, rows)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Show all containers (default shows just running)")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "Filter output (id, name, label, status, exited, ancestor, volume)")
	f.IntVarP(&o.last, "last", "n", -1, "Show n last created containers (includes all states)")
	f.BoolVarP(&o.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "Only display container IDs")
	f.StringVar(&t.format, "format", "", "Format output with a Go template, or json")
	return cmd
}

func (o *psOptions) chosen(list []engine.Summary, filters map[string][]string) []*engine.Summary {
	last := o.last
	if o.latest {
		last = 1
	}
	// As with docker, asking for a state asks for containers in it.
	all := o.all || last > 0 || len(filters["status"]) > 0 || len(filters["exited"]) > 0
	var out []*engine.Summary
	for i := range list {
		c := &list[i]
		if (all || c.Running()) && matchesContainer(c, filters) && (last < 1 || len(out) < last) {
			out = append(out, c)
		}
	}
	return out
}

// matchesContainer says that for each filter one of its values fits.
func matchesContainer(c *engine.Summary, filters map[string][]string) bool {
	for key, values := range filters {
		fits := func(v string) bool { return matchesFilter(c, key, v) }
		if key == "label" { // all of them, as docker has it
			if slices.ContainsFunc(values, func(v string) bool { return !fits(v) }) {
				return false
			}
		} else if !slices.ContainsFunc(values, fits) {
			return false
		}
	}
	return true
}

func matchesFilter(c *engine.Summary, key, v string) bool {
	switch key {
	case "id":
		return strings.HasPrefix(c.ID, v)
	case "name":
		name := strings.TrimPrefix(v, "^")
		switch anchored, isExact := strings.CutSuffix(name, "$"); {
		case isExact:
			return strings.TrimPrefix(anchored, "/") == c.Name
		case name != v:
			return strings.HasPrefix(c.Name, strings.TrimPrefix(name, "/"))
		}
		return strings.Contains(c.Name, v)
	case "label":
		name, value, hasValue := strings.Cut(v, "=")
		got, ok := c.Labels[name]
		return ok && (!hasValue || got == value)
	case "status":
		return c.Status == v
	case "exited":
		return c.Status == "exited" && strconv.Itoa(c.ExitCode) == v
	case "ancestor":
		_, hex, _ := strings.Cut(string(c.ConfigDigest), ":")
		return c.Image == v || strings.HasPrefix(string(c.ConfigDigest), v) || len(v) >= 12 && strings.HasPrefix(hex, v) ||
			strings.HasPrefix(c.Image, v+":") || path.Base(c.Image) == v
	case "volume":
		return slices.Contains(c.Volumes, v)
	}
	return false
}

// checkFilters refuses what the command does not know.
func checkFilters(filters map[string][]string, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(filters)) {
		if !slices.Contains(known, key) {
			return &usageError{fmt.Sprintf("invalid filter %q; want one of %s", key, strings.Join(known, ", "))}
		}
	}
	return nil
}

func containerRow(c *engine.Summary, noTrunc bool) map[string]any {
	id, command := c.ID, strings.Join(c.Command, " ")
	if !noTrunc {
		id, command = id[:12], ellipsis(command, maxCommand)
	}
	created, since := "N/A", "N/A"
	if !c.Created.IsZero() {
		created, since = c.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), ago(c.Created)
	}
	return map[string]any{
		"ID": id, "Image": c.Image, "Command": strconv.Quote(command), "Names": c.Name, "State": c.Status,
		"CreatedAt": created, "RunningFor": since, "Status": containerStatus(c), "Labels": joinLabels(c.Labels), allLabels: c.Labels,
		"Ports": "", "Networks": "host", "Mounts": strings.Join(c.Volumes, ","), "Size": "N/A",
		"LocalVolumes": strconv.Itoa(len(c.Volumes)),
	}
}

// maxCommand is where docker ps cuts a command.
const maxCommand = 20

// ellipsis cuts s to at most n characters, the last of which says so.
func ellipsis(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(runes[:n-1]) + "…"
}
